"""Several connectors behind one: each object goes where a policy says it belongs."""

from __future__ import annotations

import functools
import logging
import operator
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, TypeAlias, TypedDict, TypeVar

from proxystore import utils
from proxystore.connectors._base import (
    ConnectorMixin,
    abandon,
    beginning,
    close,
    disown,
    expect_claims,
    writes_buffers,
    wrong_key,
)
from proxystore.connectors._kinds import class_path
from proxystore.connectors.exceptions import ConnectorError
from proxystore.connectors.protocols import Connector
from proxystore.serialize import BytesLike
from proxystore.utils.data import readable_to_bytes
from proxystore.utils.imports import get_object_path, import_from_path

logger = logging.getLogger(__name__)

T = TypeVar("T")


class PolicyDict(TypedDict):
    """A `Policy` as JSON has it."""

    priority: int
    host_pattern: list[str] | str | None
    min_size_bytes: int
    max_size_bytes: int
    subset_tags: list[str]
    superset_tags: list[str]


@dataclass
class Policy:
    """Which objects a connector is for, and on which hosts it works.

    Attributes:
        priority: Of several connectors that may have an object, the one with the highest
            gets it.
        host_pattern: Regular expressions, one of which the whole name of a host has to
            match. None: any host.
        min_size_bytes: Length of the smallest object. Both sizes can be given as text, such
            as "1 MB".
        max_size_bytes: Length of the largest.
        subset_tags: All tags that an object may have.
        superset_tags: Tags that an object must have.

    Raises:
        TypeError: A field is of another type.
        ValueError: A size is negative or is none, the smallest is larger than the largest, or
            a pattern is no regular expression.
    """

    priority: int = 0
    host_pattern: Iterable[str] | str | None = None
    min_size_bytes: int = 0
    max_size_bytes: int = sys.maxsize
    subset_tags: list[str] = field(default_factory=list)
    superset_tags: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.priority = _whole("priority", self.priority)
        self.min_size_bytes = _size("min_size_bytes", self.min_size_bytes)
        self.max_size_bytes = _size("max_size_bytes", self.max_size_bytes)
        if self.min_size_bytes > self.max_size_bytes:
            raise ValueError(
                f"min_size_bytes={self.min_size_bytes} is more than "
                f"max_size_bytes={self.max_size_bytes}: no object has such a length"
            )
        # Lists, so that what has gone through JSON is equal to what was written, and an
        # iterator can be asked twice.
        if self.host_pattern is not None and not isinstance(self.host_pattern, str):
            self.host_pattern = _texts("host_pattern", self.host_pattern)
        for pattern in _patterns(self.host_pattern):
            _check_pattern(pattern)
        for name in ("subset_tags", "superset_tags"):
            tags = getattr(self, name)
            if isinstance(tags, str):
                raise TypeError(f"{name} must be a list of tags, got {tags!r}; write [{tags!r}]")
            setattr(self, name, _texts(name, tags))

    def is_valid(
        self,
        *,
        size_bytes: int | None = None,
        subset_tags: Iterable[str] | None = None,
        superset_tags: Iterable[str] | None = None,
    ) -> bool:
        """Say whether an object may go to the connector, from this host.

        Args:
            size_bytes: Length of the object. None: not looked at, as for the others.
            subset_tags: All of these must be among the policy's `subset_tags`.
            superset_tags: These must include all of the policy's `superset_tags`.
        """
        return (
            (size_bytes is None or self.min_size_bytes <= size_bytes <= self.max_size_bytes)
            and (subset_tags is None or set(subset_tags) <= set(self.subset_tags))
            and (superset_tags is None or set(superset_tags) >= set(self.superset_tags))
            and self.is_valid_on_host()
        )

    def is_valid_on_host(self) -> bool:
        """Say whether the name of this host matches `host_pattern`."""
        if self.host_pattern is None:
            return True
        host = utils.hostname()
        return any(_matches(pattern, host) for pattern in _patterns(self.host_pattern))

    def as_dict(self) -> PolicyDict:
        """Return the fields; ``Policy(**policy.as_dict()) == policy``."""
        patterns = self.host_pattern
        return PolicyDict(
            priority=self.priority,
            host_pattern=patterns if patterns is None or isinstance(patterns, str) else [*patterns],
            min_size_bytes=self.min_size_bytes,
            max_size_bytes=self.max_size_bytes,
            subset_tags=[*self.subset_tags],
            superset_tags=[*self.superset_tags],
        )


def _patterns(patterns: Iterable[str] | str | None) -> Iterable[str]:
    if patterns is None:
        return ()
    return (patterns,) if isinstance(patterns, str) else patterns


def _check_pattern(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"host_pattern has {pattern!r}, which is no regular expression: {error} (to match "
            f"any text, write '.*', not '*')"
        ) from error


def _whole(name: str, value: Any) -> int:
    if isinstance(value, float) and value.is_integer():  # 1e6 is often written for a million
        return int(value)
    try:
        return int(operator.index(value))
    except TypeError as error:
        raise TypeError(f"{name} must be a whole number, got {value!r}") from error


def _size(name: str, value: Any) -> int:
    if isinstance(value, str):
        try:
            value = readable_to_bytes(value)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    try:
        size = _whole(name, value)
    except TypeError as error:
        raise TypeError(
            f"{name} must be a number of bytes, or a size such as '1 MB', got {value!r}; leave "
            f"it out for no limit"
        ) from error
    if size < 0:
        raise ValueError(f"{name} must be 0 bytes or more, got {size}")
    return size


def _texts(name: str, values: Any) -> list[str]:
    try:
        texts = list(values)
    except TypeError as error:
        raise TypeError(f"{name} must be a list of texts, got {values!r}") from error
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"{name} must be a list of texts, got one with {text!r} in it")
    return texts


# Asked before each put, with answers that hardly ever change.
@functools.lru_cache(maxsize=1024)
def _matches(pattern: str, host: str) -> bool:
    return re.fullmatch(pattern, host) is not None


# Path of a connector's class (or a built-in's name), what `config` returned, and the policy.
ConnectorPolicyConfig: TypeAlias = tuple[str, dict[str, Any], PolicyDict]


class MultiKey(NamedTuple):
    """Key of an object in a `MultiConnector`: who has it, and that connector's own key."""

    connector_name: str
    connector_key: Any


class MultiConnectorError(ConnectorError):
    """A `MultiConnector` has no connector for what it was asked to do."""


class NoPolicyMatchError(MultiConnectorError):
    """No connector may have an object.

    Attributes:
        size_bytes: Length of the object.
        subset_tags: As given, as are `superset_tags`.
        host: Where it was to be stored from.
        names: The connectors that were asked.
    """

    def __init__(
        self,
        size_bytes: int,
        subset_tags: tuple[str, ...],
        superset_tags: tuple[str, ...],
        host: str,
        names: tuple[str, ...],
    ) -> None:
        super().__init__(size_bytes, subset_tags, superset_tags, host, names)
        self.size_bytes = size_bytes
        self.subset_tags = subset_tags
        self.superset_tags = superset_tags
        self.host = host
        self.names = names

    def __str__(self) -> str:
        return (
            f"an object of {self.size_bytes} bytes with subset_tags={list(self.subset_tags)} and "
            f"superset_tags={list(self.superset_tags)} does not meet the constraints of any "
            f"policy on host {self.host!r} (connectors: {', '.join(self.names) or 'none'}); "
            f"add a connector with Policy(), which takes any object without tags"
        )


class NoSuchConnectorError(MultiConnectorError):
    """A key belongs to a connector that this `MultiConnector` has not got.

    Attributes:
        name: Of the connector.
        known: Names there are.
    """

    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        super().__init__(name, known)
        self.name = name
        self.known = known

    def __str__(self) -> str:
        return (
            f"a connector named {self.name!r} does not exist (there are: "
            f"{', '.join(self.known) or 'none'}); the key is another MultiConnector's"
        )


class DormantConnectorError(MultiConnectorError):
    """A key belongs to a connector that does not work on this host.

    Attributes:
        name: Of the connector.
        host: This host.
        host_pattern: Of the connector's policy.
    """

    def __init__(self, name: str, host: str, host_pattern: list[str] | str | None) -> None:
        super().__init__(name, host, host_pattern)
        self.name = name
        self.host = host
        self.host_pattern = host_pattern

    def __str__(self) -> str:
        return (
            f"the connector named {self.name!r} is dormant on host {self.host!r}: its policy is "
            f"for hosts that match {self.host_pattern!r}; use the object there, or store it with "
            f"a connector for both"
        )


class _Active(NamedTuple):
    """A connector that objects can be put to, and which ones."""

    connector: Connector[Any]
    policy: Policy


class MultiConnector(ConnectorMixin[MultiKey]):
    """Puts each object to the first of several connectors whose policy is for it.

    If that connector cannot store it, the next one that may have it is tried.

    Thread-safe; a member that is not is used by one thread at a time.

    It can also be made of what `config` returns, a keyword for each connector. Then those
    that do not work on this host stay dormant: they are not made, and objects in them
    cannot be reached from here.

    Args:
        connectors: By name, each with its policy.
        dormant_connectors: By name, what would make those that do not work here.
        configs: By name, the path of a connector's class (or a built-in's name), its
            options and its policy's fields.

    Raises:
        ValueError: A name is given twice, or is that of an argument; a configuration does
            not have the three parts.

    Attributes:
        connectors: By name, pairs of connector and policy.
        connectors_by_priority: Their names, in the order in which they are asked.
        dormant_connectors: As given.
    """

    thread_safe = True

    def __init__(
        self,
        /,
        connectors: dict[str, tuple[Connector[Any], Policy]] | None = None,
        dormant_connectors: dict[str, ConnectorPolicyConfig] | None = None,
        **configs: ConnectorPolicyConfig,
    ) -> None:
        connectors = _by_name("connectors", connectors)
        dormant_connectors = _by_name("dormant_connectors", dormant_connectors)
        # In the order given, which decides between equal priorities here and elsewhere.
        self._names = [*connectors, *dormant_connectors, *configs]
        _check_names(self._names)
        self.connectors = {name: _Active(*pair) for name, pair in connectors.items()}
        self.dormant_connectors = dict(dormant_connectors)
        made: list[Connector[Any]] = []
        try:
            for name, config in configs.items():
                kind, options, policy = _parts(name, config)
                if not policy.is_valid_on_host():
                    self.dormant_connectors[name] = config
                    continue
                made.append(_new_connector(name, kind, options))
                self.connectors[name] = _Active(made[-1], policy)
        except BaseException:
            for connector in made:
                with suppress(Exception):  # the first error is the one to know about
                    abandon(connector)
            raise
        self.connectors_by_priority = sorted(
            self.connectors, key=lambda name: -self.connectors[name].policy.priority
        )
        self._locks: dict[str, threading.RLock] = {}
        self._pid = os.getpid()

    def __repr__(self) -> str:
        members = {name: connector for name, (connector, _) in self.connectors.items()}
        return f"MultiConnector({members!r})"

    def config(self) -> dict[str, ConnectorPolicyConfig]:
        """Return by name what makes each connector, dormant ones included."""
        config: dict[str, ConnectorPolicyConfig] = {}
        for name in self._names:
            if name in self.connectors:
                connector, policy = self.connectors[name]
                kind, options = get_object_path(type(connector)), connector.config()
            else:
                kind, options, policy = _parts(name, self.dormant_connectors[name])
            config[name] = (kind, dict(options), policy.as_dict())
        return config

    def disown(self) -> None:
        """Leave deleting to somebody else, as far as connectors do any on `close`."""
        for connector, _ in self.connectors.values():
            disown(connector)

    def abandon(self) -> None:
        """Close as if it had never been opened; no object is deleted."""
        self._close_all(abandon)

    def close(self, clear: bool | None = None) -> None:
        """Close every active connector, then raise the first error there was.

        Args:
            clear: For those connectors whose `close` has this argument. None: not given.
        """
        self._close_all(functools.partial(close, clear=clear))

    def _close_all(self, close_one: Callable[[Connector[Any]], None]) -> None:
        first: BaseException | None = None
        for name, (connector, _) in self.connectors.items():
            try:
                with self._alone(name):
                    close_one(connector)
            except Exception as error:  # noqa: BLE001, PERF203 - raised below
                first = first or error
        if first is not None:
            raise first

    @property
    def maps_from(self) -> int | None:
        """Length in bytes from which on `get` maps a file, whoever has it; None: there is none."""
        longest = 0
        for connector, policy in self.connectors.values():
            maps = getattr(type(connector), "maps_from", None)
            maps_from = maps and connector.maps_from  # type: ignore[attr-defined]
            if maps_from is not None:
                longest = max(longest, maps_from)
            elif policy.max_size_bytes < sys.maxsize:
                longest = max(longest, policy.max_size_bytes + 1)
            else:
                return None
        return longest

    # -- one object

    def put(
        self,
        obj: BytesLike,
        subset_tags: Iterable[str] = (),
        superset_tags: Iterable[str] = (),
    ) -> MultiKey:
        """Store data with the first connector that may have it and can take it.

        Args:
            obj: Data.
            subset_tags: As for `Policy.is_valid`.
            superset_tags: As for `Policy.is_valid`.

        Raises:
            NoPolicyMatchError: No connector may have it; a `MultiConnectorError`.
            ConnectorError: None of those that may could; this is what the first said.
            OSError: As above.
        """
        return self._put([(obj,)], subset_tags, superset_tags, in_pieces=False)[0]

    def put_buffers(
        self,
        parts: Sequence[BytesLike],
        subset_tags: Iterable[str] = (),
        superset_tags: Iterable[str] = (),
    ) -> MultiKey:
        """Store the concatenation of `parts`, joined only where a connector cannot do that."""
        return self._put([parts], subset_tags, superset_tags, in_pieces=True)[0]

    def get(self, key: MultiKey) -> BytesLike | None:
        """Return the data, or None if there is no such key."""
        return self._ask(key, lambda connector, inner: connector.get(inner))

    def peek(self, key: MultiKey, length: int) -> tuple[BytesLike, int] | None:
        """Return the first `length` bytes of the data (or all, if less) and their whole length.

        None if there is no such key. A connector that cannot do that is asked for all.
        """

        def look(connector: Any, inner: Any) -> tuple[BytesLike, int] | None:
            if hasattr(type(connector), "peek"):
                return connector.peek(inner, length)  # type: ignore[no-any-return] # not typed
            data = connector.get(inner)
            return None if data is None else beginning(data, length)

        return self._ask(key, look)

    def exists(self, key: MultiKey) -> bool:
        """Say whether there is an object under `key`."""
        return self._ask(key, lambda connector, inner: connector.exists(inner))

    def evict(self, key: MultiKey) -> None:
        """Remove the object; that it is not there is no error."""
        self._ask(key, lambda connector, inner: connector.evict(inner))

    # -- claiming

    def expect_claims(self) -> None:
        """Be ready for claims on any object.

        Raises:
            NotImplementedError: One of the connectors, any of which may get the object, is no
                `ClaimableConnector`.
        """
        for connector, _ in self.connectors.values():
            expect_claims(connector)

    def claim(self, key: MultiKey, claimant: str, seconds: float) -> str:
        """Try to claim the object for a time, and return who has it now.

        See `proxystore.connectors.protocols.ClaimableConnector`.

        Raises:
            NotImplementedError: The connector that has it is none.
        """

        def claim(connector: Any, inner: Any) -> str:
            expect_claims(connector)
            return connector.claim(inner, claimant, seconds)  # type: ignore[no-any-return] # not typed

        return self._ask(key, claim)

    def release(self, key: MultiKey, claimant: str) -> None:
        """End the claim of `claimant`; if somebody else has the object, do nothing."""

        def release(connector: Any, inner: Any) -> None:
            if hasattr(type(connector), "release"):  # else nobody has claimed anything
                connector.release(inner, claimant)

        self._ask(key, release)

    # -- several

    def put_batch(
        self,
        objs: Sequence[BytesLike],
        subset_tags: Iterable[str] = (),
        superset_tags: Iterable[str] = (),
    ) -> list[MultiKey]:
        """Store each item as `put` does: all, or none if one cannot be stored.

        Each connector gets its share in one batch.
        """
        return self._put([(obj,) for obj in objs], subset_tags, superset_tags, in_pieces=False)

    def put_buffers_batch(
        self,
        batch: Sequence[Sequence[BytesLike]],
        subset_tags: Iterable[str] = (),
        superset_tags: Iterable[str] = (),
    ) -> list[MultiKey]:
        """Store several objects as `put_buffers` does: all, or none if one cannot be stored."""
        return self._put(batch, subset_tags, superset_tags, in_pieces=True)

    def _put(
        self,
        batch: Sequence[Sequence[BytesLike]],
        subset_tags: Iterable[str],
        superset_tags: Iterable[str],
        *,
        in_pieces: bool,
    ) -> list[MultiKey]:
        # In pieces: of memory that may change later, so what keeps them must copy them.
        subset_tags, superset_tags = tuple(subset_tags), tuple(superset_tags)
        # By place in the batch: connectors that may have the object and were not tried yet.
        untried = [self._choices(parts, subset_tags, superset_tags) for parts in batch]
        keys: dict[int, MultiKey] = {}
        first: Exception | None = None
        try:
            while len(keys) < len(batch):
                shares: dict[str, list[int]] = {}
                for i in range(len(batch)):
                    if i not in keys:
                        if not untried[i]:
                            assert first is not None
                            raise first
                        shares.setdefault(untried[i].pop(0), []).append(i)
                for name, places in shares.items():
                    try:
                        share = [batch[i] for i in places]
                        found = self._put_share(name, share, in_pieces)
                    except (ConnectorError, OSError) as error:  # noqa: PERF203 - per connector
                        first = first or error
                        logger.warning(
                            "connector %r could not store %d objects, which go to the next "
                            "whose policy allows it: %r",
                            *(name, len(places), error),
                        )
                    else:
                        keys.update(zip(places, found, strict=True))
        except BaseException:
            for key in keys.values():
                with suppress(Exception):  # the first error is the one to know about
                    self.evict(key)
            raise
        return [keys[i] for i in range(len(batch))]

    def get_batch(self, keys: Sequence[MultiKey]) -> list[BytesLike | None]:
        """Return the data of each key: same length and order, None where missing.

        Each connector is asked once.
        """
        shares: dict[str, list[int]] = {}
        for i, key in enumerate(keys):
            name, _ = _parts_of(key)
            shares.setdefault(name, []).append(i)
        found: list[BytesLike | None] = [None] * len(keys)
        for name, places in shares.items():
            connector = self._active(name)
            with self._alone(name):
                batch = connector.get_batch([keys[i][1] for i in places])
            for i, data in zip(places, batch, strict=True):
                found[i] = data
        return found

    # -- who

    def _choices(
        self,
        parts: Sequence[BytesLike],
        subset_tags: tuple[str, ...],
        superset_tags: tuple[str, ...],
    ) -> list[str]:
        """Return the names of the connectors that may have an object, best first."""
        size = sum(memoryview(part).nbytes for part in parts)
        names = [
            name
            for name in self.connectors_by_priority
            if self.connectors[name].policy.is_valid(
                size_bytes=size, subset_tags=subset_tags, superset_tags=superset_tags
            )
        ]
        if not names:
            raise NoPolicyMatchError(
                *(size, subset_tags, superset_tags),
                *(utils.hostname(), tuple(self.connectors_by_priority)),
            )
        return names

    def _put_share(
        self, name: str, batch: list[Sequence[BytesLike]], in_pieces: bool
    ) -> list[MultiKey]:
        connector: Any = self._active(name)
        with self._alone(name):
            if not (in_pieces and writes_buffers(connector)):
                objs = [b"".join(parts) if in_pieces else parts[0] for parts in batch]
                found = [connector.put(objs[0])] if len(objs) == 1 else connector.put_batch(objs)
            elif len(batch) > 1 and hasattr(type(connector), "put_buffers_batch"):
                found = connector.put_buffers_batch(batch)
            else:
                found = []
                try:
                    for parts in batch:
                        found.append(connector.put_buffers(parts))
                except BaseException:
                    for key in found:
                        with suppress(Exception):  # as above
                            connector.evict(key)
                    raise
        return [MultiKey(name, key) for key in found]

    def _ask(self, key: MultiKey, question: Callable[[Connector[Any], Any], T]) -> T:
        name, inner = _parts_of(key)
        connector = self._active(name)
        with self._alone(name):
            return question(connector, inner)

    def _active(self, name: str) -> Connector[Any]:
        found = self.connectors.get(name)
        if found is not None:
            return found.connector
        if name in self.dormant_connectors:
            policy = _parts(name, self.dormant_connectors[name])[2].as_dict()
            raise DormantConnectorError(name, utils.hostname(), policy["host_pattern"])
        raise NoSuchConnectorError(name, tuple(self._names))

    def _alone(self, name: str) -> AbstractContextManager[Any]:
        """Keep other threads from a connector that is not thread-safe."""
        if getattr(type(self.connectors[name].connector), "thread_safe", False):
            return nullcontext()
        if self._pid != os.getpid():  # forked: threads that held them are in the parent
            self._pid = os.getpid()
            self._locks = {}
        # Re-entrant: a destructor that runs in the middle of an operation may evict.
        return self._locks.setdefault(name, threading.RLock())


def _parts_of(key: Any) -> tuple[str, Any]:
    # By its class alone: what a proxy's target is, would resolve it.
    if not issubclass(type(key), tuple) or len(key) != len(MultiKey._fields):
        raise wrong_key(key, MultiKey)
    return key  # type: ignore[no-any-return] # a tuple of two


def _by_name(argument: str, given: Any) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        # What `config` of a connector with such a name looks like.
        raise ValueError(
            f"{argument} must be a dictionary by name, got {type(given).__name__}; a connector "
            f"cannot be named {argument!r}"
        )
    return given


def _check_names(names: list[str]) -> None:
    for name in names:
        if not isinstance(name, str) or name in ("connectors", "dormant_connectors"):
            raise ValueError(
                f"a connector cannot be named {name!r}: the name has to be text, and not that of "
                f"an argument of MultiConnector"
            )
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"several connectors are named {', '.join(twice)}: give each its own")


def _parts(name: str, config: Any) -> tuple[str, dict[str, Any], Policy]:
    """Return the parts of a configuration, which may have come through JSON or TOML."""
    try:
        kind, options, policy = config
        if not (isinstance(kind, str) and isinstance(options, dict) and isinstance(policy, dict)):
            raise TypeError("their types are others")
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the connector named {name!r} must be given as (path of its class, dictionary of "
            f"its options, dictionary of its policy), got {config!r}: {error}"
        ) from error
    unknown = policy.keys() - {field.name for field in fields(Policy)}
    if unknown:
        raise ValueError(
            f"the policy of the connector named {name!r} has no {', '.join(sorted(unknown))}"
        )
    return kind, options, Policy(**policy)


def as_returned(options: dict[str, Any]) -> dict[str, Any]:
    """Return options as `MultiConnector.config` would, though they have come through TOML or JSON.

    These have lists for tuples, and TOML has no None. What is no configuration of a connector
    stays as it is: making the connector will tell.
    """
    found = dict(options)
    for name, config in options.items():
        with suppress(TypeError, ValueError):
            kind, its_options, policy = _parts(name, config)
            is_multi = class_path(kind) == get_object_path(MultiConnector)
            its_options = as_returned(its_options) if is_multi else dict(its_options)
            found[name] = (kind, its_options, policy.as_dict())
    return found


def _new_connector(name: str, kind: str, options: dict[str, Any]) -> Connector[Any]:
    try:
        cls = import_from_path(class_path(kind))
    except ImportError as error:
        raise MultiConnectorError(
            f"the class of the connector named {name!r} cannot be imported here: {error}"
        ) from error
    try:
        connector: Connector[Any] = cls(**options)
    except TypeError as error:
        raise TypeError(f"connector {name!r}: {error}") from error
    return connector
