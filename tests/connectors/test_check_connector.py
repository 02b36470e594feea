"""What `check_connector` says to who has written a connector that breaks a promise."""

from __future__ import annotations

import pytest

from proxystore.connectors.local import LocalConnector
from proxystore.testing import check_connector


class Half:
    def __repr__(self):
        return "Half()"

    def get(self, key):
        return None

    def put(self, obj):
        return ("key",)


class Forgetful(LocalConnector):
    def get(self, key):
        return None


class Shameless(LocalConnector):
    def __repr__(self):
        raise RuntimeError("no name")


def test_methods_that_are_missing_are_named():
    with pytest.raises(AssertionError) as caught:
        check_connector(Half())
    assert str(caught.value) == (
        "Half() breaks a promise: it has all methods of Connector (missing: close, config, "
        "from_config, evict, exists, get_batch, put_batch)"
    )


def test_who_breaks_which_promise_is_said():
    with pytest.raises(
        AssertionError, match=r"^LocalConnector\(\) breaks a promise: what was put comes back"
    ):
        check_connector(Forgetful())


def test_a_connector_without_a_name_is_told_so():
    with pytest.raises(AssertionError, match=r"^a Shameless breaks a promise: it has a repr"):
        check_connector(Shameless())
