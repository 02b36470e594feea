"""Warming, out of 20 years of made-up temperatures: xarray on Dask, chunks by reference."""

from __future__ import annotations

import argparse

import numpy as np
import xarray as xr

from proxystore_dask import Client

LOCAL = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
YEARS = 20
WARMING = 0.03  # kelvin a year; twice that at the poles


def temperatures() -> xr.DataArray:
    """Return monthly means on a grid of 2.5 degrees, in kelvin: season, warming and weather."""
    time = xr.date_range("2001-01", periods=12 * YEARS, freq="MS")
    lat, lon = np.arange(-88.75, 90, 2.5), np.arange(0, 360, 2.5)
    months = np.arange(len(time))[:, np.newaxis, np.newaxis]
    south_north = np.deg2rad(lat)[:, np.newaxis]
    season = -15 * np.sin(south_north) * np.cos(2 * np.pi * months / 12)
    warming = WARMING * months / 12 * (1 + np.abs(np.sin(south_north)))
    weather = np.random.default_rng(0).normal(size=(len(time), len(lat), len(lon)))
    values = 288 - 40 * np.sin(south_north) ** 2 + season + warming + weather
    coordinates = {"time": time, "lat": lat, "lon": lon}
    return xr.DataArray(values.astype(np.float32), coordinates, name="temperature")


def main() -> None:
    options = parse_options()
    cluster = {"scheduler_file": options.scheduler} if options.scheduler else LOCAL
    cube = temperatures()
    with Client(**cluster) as client:
        # Nothing below knows of stores: xarray makes a graph, and the chunks are in that.
        chunked = cube.chunk(time=60)
        yearly = chunked.groupby("time.year").mean().mean("lon")
        fit = yearly.polyfit("year", deg=1).polyfit_coefficients.sel(degree=1)
        decade = (10 * fit).compute()
        for south, north in [(-90, -60), (-15, 15), (60, 90)]:
            warming = decade.sel(lat=slice(south, north))
            mean = float(warming.weighted(np.cos(np.deg2rad(warming.lat))).mean())
            print(f"latitude {south:+3} to {north:+3}: {mean:.2f} K a decade")
        stats = client.ps_stats()
        print(f"stored: {stats.puts} chunks of {stats.put_bytes / stats.puts / 1e6:.1f} MB")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "scheduler", nargs="?", help="scheduler file of a Dask cluster; without, two local workers"
    )
    return parser.parse_args()


# Dask's workers import this file too.
if __name__ == "__main__":
    main()
