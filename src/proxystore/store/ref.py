"""Who owns a stored object, and who has borrowed it.

An object has one owner, and is evicted when that dies. Owners lend: to many readers, or to
one writer. Pickling a reference moves it: the one that was pickled cannot be used any more, the
one that is unpickled can.

Two rules for whoever changes it:

- `_lock` protects the counts, who has ended, and the tables below. Finalizers end references in
  whichever thread drops the last one, also in the middle of another function of this module in
  the same thread: so the lock is re-entrant. That a borrow ends in between makes no decision
  wrong. Under the lock nobody does I/O, nor lets go of a target or an owner.
- A name that a class here defines is not the target's on its instances. Names are like
  `__proxy_this__`; all else is a function of the module.
"""

from __future__ import annotations

import atexit
import copy
import gc
import logging
import os
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from proxystore.proxy import (
    DefaultClassType,
    DefaultHashType,
    FactoryType,
    Proxy,
    _arriving,
    _departing,
    _held,
    _is_held,
    _Resolver,
    _resolver,
    _set_resolver,
)
from proxystore.store._registry import evict_from, store_at
from proxystore.store.factory import StoreFactory
from proxystore.store.types import SerializerT
from proxystore.store.utils import _factory_of

if TYPE_CHECKING:
    from typing_extensions import Self

    from proxystore.store.base import Store

__all__ = [
    "BaseRefProxy",
    "BaseRefProxyError",
    "MutableBorrowError",
    "OwnedProxy",
    "RefMutProxy",
    "RefProxy",
    "ReferenceInvalidError",
    "ReferenceNotOwnedError",
    "borrow",
    "clone",
    "into_owned",
    "mut_borrow",
    "update",
]

T = TypeVar("T")

logger = logging.getLogger(__name__)


# -- Errors ---------------------------------------------------------------------------------


class BaseRefProxyError(Exception):
    """Base of errors about references."""


class MutableBorrowError(BaseRefProxyError):
    """An owner was asked for what others who have borrowed the object rule out.

    Attributes:
        act: What was asked for: "borrow", "mut_borrow" or "update".
        readers: How many `RefProxy` there are.
        writers: How many `RefMutProxy` there are, 0 or 1.
    """

    def __init__(self, act: str, readers: int, writers: int) -> None:
        super().__init__(act, readers, writers)
        self.act = act
        self.readers = readers
        self.writers = writers

    def __str__(self) -> str:
        return (
            f"cannot {self.act}() while the object is borrowed "
            f"({_borrowed(self.readers, self.writers)}); a borrow ends when its reference is "
            f"deleted, or with the task it was submitted to"
        )


class ReferenceNotOwnedError(BaseRefProxyError):
    """Something was asked of a reference, or of a plain proxy, that only an owner can do.

    Attributes:
        act: What was asked for: "borrow", "mut_borrow", "clone" or "update".
        kind: Class of what was given.
        needed: What would have done.
    """

    def __init__(self, act: str, kind: str, needed: str) -> None:
        super().__init__(act, kind, needed)
        self.act = act
        self.kind = kind
        self.needed = needed

    def __str__(self) -> str:
        return f"{self.act}() needs {self.needed}, got a {self.kind}"


class ReferenceInvalidError(BaseRefProxyError):
    """A reference has ended: it cannot be used any more.

    Attributes:
        reference: Its class and what it refers to, as text.
        reason: How it has ended.
    """

    def __init__(self, reference: str, reason: str) -> None:
        super().__init__(reference, reason)
        self.reference = reference
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.reference} cannot be used any more: {self.reason}"


_UNBORN = "it was never initialized"
_MOVED = "it was pickled, and what was unpickled has taken its place"
_DESTROYED = "its destructor has run"
_RETURNED = "it was marked out of scope"
_EXITED = "the interpreter is exiting"
_TWICE = "its pickle was unpickled twice in this process, and the first owner is still there"
_FORKED = "it belongs to the process that this one was forked from, which will evict the object"


# -- What is shared -------------------------------------------------------------------------

# See the top of the file.
_lock = threading.RLock()

# What may be done with an owner while others read, and while another writes.
_MAY: dict[str, tuple[bool, bool]] = {
    "borrow": (True, False),
    "mut_borrow": (False, False),
    "update": (False, False),
}

# References that have not ended, by identity: what is left of them when the interpreter exits
# ends then. Whoever takes an owner out of the table evicts its object. (No `weakref.WeakSet`,
# which would hash, and so resolve, its members.)
_alive: dict[int, _RefResolver] = {}

# Owners that have been unpickled here, by key.
_arrived: dict[Any, _RefResolver] = {}

_exit_is_watched = False


def _watch_exit() -> None:
    global _exit_is_watched
    _exit_is_watched = True
    atexit.register(_end_all)
    # Children of multiprocessing, as in process pools, do not run what atexit has registered.
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        from multiprocessing import util

        util.Finalize(None, _end_all, exitpriority=-1)


def _end_all() -> None:
    """End what has not ended: first who has borrowed, then the owners."""
    left: list[Any] = [weakref.ref.__call__(resolver) for resolver in list(_alive.values())]
    owners = []
    for ref in left:
        if issubclass(type(ref), OwnedProxy):
            owners.append(ref)
        elif ref is not None:
            end_borrow(ref, _EXITED, must_have_owner=False)
    for owner in owners:
        _destroy(owner, _EXITED, anyway=True)


def _after_fork() -> None:
    global _lock, _exit_is_watched
    _lock = threading.RLock()  # who has held it is not here
    _exit_is_watched = False
    _alive.clear()  # the parent will evict, if the child did, it would find nothing there
    _arrived.clear()


os.register_at_fork(after_in_child=_after_fork)


class _RefResolver(_Resolver):
    """The resolver of a reference, which outlives the reference in the tables.

    Attributes:
        ended: Why the reference cannot be used any more. None: it can.
        defaults: Its cached class and hash, for a pickle of one that was moved. None: the
            reference has them.
    """

    __slots__ = ("defaults", "ended")
    defaults: tuple[DefaultClassType, DefaultHashType] | None
    ended: str | None

    def _produce(self, proxy: Proxy[Any] | None = None) -> Any:
        if self.ended is not None:
            raise _invalid(self, proxy, self.ended)
        target = super()._produce(proxy)
        if self.ended is not None:  # meanwhile; nobody may use the target
            raise _invalid(self, proxy, self.ended)
        return target

    def __repr__(self) -> str:
        text = super().__repr__()
        return text if self.ended is None else f"{text}; {self.ended}"


def _invalid(resolver: _RefResolver, ref: Proxy[Any] | None, reason: str) -> ReferenceInvalidError:
    what = getattr(resolver, "factory", None)
    kind = "reference" if ref is None else type(ref).__name__
    return ReferenceInvalidError(f"{kind} of {getattr(what, 'key', what)!r}", reason)


def _state(ref: BaseRefProxy[Any]) -> _RefResolver:
    resolver: Any = _resolver(ref)
    return resolver  # type: ignore[no-any-return]


def _require_valid(ref: BaseRefProxy[Any]) -> _RefResolver:
    resolver = _state(ref)
    if resolver.ended is not None:
        raise _invalid(resolver, ref, resolver.ended)
    return resolver


def _borrowed(readers: int, writers: int) -> str:
    return f"by {readers} RefProxy and {writers} RefMutProxy"


def _allow(owner: OwnedProxy[Any], act: str) -> None:
    """Raise unless `act` may be done now. The caller holds the lock."""
    readers, writers = owner.__proxy_ref_count__, owner.__proxy_ref_mut_count__
    beside_readers, beside_writers = _MAY[act]
    if (writers and not beside_writers) or (readers and not beside_readers):
        raise MutableBorrowError(act, readers, writers)


def _end(ref: BaseRefProxy[Any], resolver: _RefResolver, reason: str) -> Any:
    """Note that a reference has ended, and take its target. The caller holds the lock.

    Returns:
        The target, which the caller lets go of without the lock: its finalizer may run any code.
    """
    resolver.ended = reason
    if not _is_held(ref):
        return None
    # Only one that never was resolved goes on answering with what is cached.
    resolver.defaults = (ref.__proxy_default_class__, ref.__proxy_default_hash__)
    ref.__proxy_default_class__ = ref.__proxy_default_hash__ = None
    target = _held(ref)
    del ref.__proxy_held__
    return target


def _unlist(resolver: _RefResolver) -> None:
    """Let another owner of the object arrive. The caller holds the lock."""
    key = getattr(resolver.factory, "key", None)
    if _arrived.get(key) is resolver:
        del _arrived[key]


# -- The references -------------------------------------------------------------------------


class BaseRefProxy(Proxy[T]):
    """What owners and borrowers have in common: a proxy that can end.

    Once it has been pickled, deleted or marked out of scope, whatever needs the target raises
    `ReferenceInvalidError`. It can be pickled again then: whoever serializes it may need a
    second attempt. Copying it is an error.

    Not to be used by itself.
    """

    # How often the object may have been replaced: caches may have it as it was before.
    __slots__ = ("__proxy_version__",)

    if TYPE_CHECKING:
        __proxy_version__: int

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Return a reference without a factory, which cannot be used until it is initialized."""
        self = Proxy.__new__(cls)
        resolver = _RefResolver(self)
        resolver.ended = _UNBORN
        resolver.defaults = None
        _set_resolver(self, resolver)
        self.__proxy_version__ = 0
        return self

    def __init__(
        self, factory: FactoryType[T], *, cache_defaults: bool = False, target: T | None = None
    ) -> None:
        super().__init__(factory, cache_defaults=cache_defaults, target=target)
        resolver = _state(self)
        resolver.ended = None
        _alive[id(self)] = resolver
        if not _exit_is_watched:
            _watch_exit()

    @property
    def __proxy_valid__(self) -> bool:
        return _state(self).ended is None

    @property
    def __proxy_finalizer__(self) -> Any:
        """The weak reference that ends this one when the interpreter exits, if it has not yet."""
        return _alive.get(id(self))

    def __copy__(self) -> NoReturn:
        raise NotImplementedError(
            f"Copy is not implemented for a {type(self).__name__}: use borrow() or clone()"
        )

    def __deepcopy__(self, memo: Any) -> NoReturn:
        raise NotImplementedError(
            f"Deep copy is not implemented for a {type(self).__name__}: use clone()"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        kind = _kind_name(type(self))
        resolver = _state(self)
        targets = None
        if _writes_for(self) is not None:
            _forget_cached(resolver.factory)
        with _lock:
            if resolver.ended is None:
                targets = _move(self, resolver)
            elif resolver.ended is not _MOVED:
                raise _invalid(resolver, self, resolver.ended)
        del targets
        default_class, default_hash = resolver.defaults or (
            self.__proxy_default_class__,
            self.__proxy_default_hash__,
        )
        arguments = (
            kind,
            resolver.factory,
            *_departing(default_class, default_hash),
        )
        # Others rely on these four; there is a fifth only if it matters.
        version = self.__proxy_version__
        return _proxy_trampoline, (*arguments, version) if version else arguments

    def __dask_tokenize__(self) -> Any:
        # Otherwise Dask pickles what it is given, and the reference is gone before it is sent.
        key = getattr(self.__proxy_factory__, "key", id(self))
        return type(self).__name__, key, self.__proxy_version__


class OwnedProxy(BaseRefProxy[T]):
    """The owner of a stored object, which is evicted when the owner is deleted.

    That is done through the store that has made the object, if it is still there; otherwise by
    a connector made for the purpose. It happens in whichever thread drops the last reference,
    or when the interpreter exits. If it fails, that is logged, and the object stays.

    After a fork the child has copies of its parent's owners: they can be used, but they evict
    nothing and cannot be pickled.

    Unpickling the same pickle twice makes two owners. In one process the second one cannot be
    used while the first lives. Owners in different processes do not know of each other: when
    the first dies, the object is gone for both.

    Args:
        factory: Of the stored object.
        cache_defaults: As for `Proxy`.
        target: As for `Proxy`.
    """

    __slots__ = ("__proxy_ref_count__", "__proxy_ref_mut_count__")

    if TYPE_CHECKING:
        __proxy_ref_count__: int
        __proxy_ref_mut_count__: int

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """As for `BaseRefProxy`."""
        self = super().__new__(cls)
        self.__proxy_ref_count__ = self.__proxy_ref_mut_count__ = 0
        return self

    def __init__(
        self, factory: StoreFactory[T], *, cache_defaults: bool = False, target: T | None = None
    ) -> None:
        super().__init__(factory, cache_defaults=cache_defaults, target=target)

    def __del__(self) -> None:
        _destroy(self, _DESTROYED)


class _BorrowedProxy(BaseRefProxy[T]):
    """What readers and the writer have in common: an owner, which they keep alive."""

    __slots__ = ("__proxy_owner__",)

    if TYPE_CHECKING:
        __proxy_owner__: OwnedProxy[T] | None

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """As for `BaseRefProxy`."""
        self = super().__new__(cls)
        self.__proxy_owner__ = None
        return self

    def __init__(
        self,
        factory: FactoryType[T],
        *,
        cache_defaults: bool = False,
        owner: OwnedProxy[T] | None = None,
        target: T | None = None,
    ) -> None:
        super().__init__(factory, cache_defaults=cache_defaults, target=target)
        if owner is not None:
            _lend(owner, self)

    def __del__(self) -> None:
        end_borrow(self, _DESTROYED, must_have_owner=False)


class RefProxy(_BorrowedProxy[T]):
    """A borrowed object, to be read. An owner can lend to any number of readers at once.

    Args:
        factory: Of the stored object.
        cache_defaults: As for `Proxy`.
        owner: Who lends the object; is kept alive. None: it is in another process.
        target: As for `Proxy`.

    Raises:
        MutableBorrowError: Somebody has borrowed the object from `owner` to write.
        ReferenceInvalidError: `owner` has ended.
    """

    __slots__ = ()


class RefMutProxy(_BorrowedProxy[T]):
    """A borrowed object, to be changed: nobody else has it meanwhile.

    Arguments are those of `RefProxy`.

    Raises:
        MutableBorrowError: Somebody has borrowed the object from `owner`.
        ReferenceInvalidError: `owner` has ended.
    """

    __slots__ = ()


_KINDS: dict[str, type[BaseRefProxy[Any]]] = {
    "OwnedProxy": OwnedProxy,
    "RefProxy": RefProxy,
    "RefMutProxy": RefMutProxy,
}


def _kind_name(kind: type) -> str:
    for name, known in _KINDS.items():
        if kind is known:
            return name
    raise TypeError(f"a {kind.__qualname__} cannot be pickled, only {', '.join(_KINDS)} can")


def _lend(owner: OwnedProxy[T], borrower: _BorrowedProxy[T]) -> None:
    writes = issubclass(type(borrower), RefMutProxy)
    with _lock:
        _require_valid(owner)
        _allow(owner, "mut_borrow" if writes else "borrow")
        if writes:
            owner.__proxy_ref_mut_count__ += 1
        else:
            owner.__proxy_ref_count__ += 1
        borrower.__proxy_owner__ = owner
    borrower.__proxy_version__ = owner.__proxy_version__


def end_borrow(
    borrower: _BorrowedProxy[Any],
    reason: str = _RETURNED,
    *,
    must_have_owner: bool = True,
) -> None:
    """End a borrow: its owner no longer counts it, exactly once.

    One that was pickled has ended for who used it then, and does for its owner now. Does
    nothing to one that has ended for both.

    Args:
        borrower: The reference.
        reason: Given to who uses it nevertheless.
        must_have_owner: Whether it is an error that its owner is in another process, and so
            does not learn of it.

    Raises:
        RuntimeError: It is, and the reference has not ended yet.
    """
    resolver = _state(borrower)
    writes = issubclass(type(borrower), RefMutProxy)
    target = replaced = None
    if resolver.ended is _MOVED and _writes_for(borrower) is not None:
        _forget_cached(resolver.factory)  # before the owner, which would find it there again
    with _lock:
        owner = borrower.__proxy_owner__
        if must_have_owner and owner is None and resolver.ended is None:
            raise RuntimeError(
                f"a {type(borrower).__name__} has no reference to its owner, which is in another "
                f"process: only there can it be marked out of scope"
            )
        borrower.__proxy_owner__ = None
        if owner is not None:
            if writes:
                owner.__proxy_ref_mut_count__ -= 1
                if resolver.ended is _MOVED:  # another process may have called update()
                    owner.__proxy_version__ += 1
                    replaced = _outdate(owner)
            else:
                owner.__proxy_ref_count__ -= 1
        if resolver.ended is None:
            target = _end(borrower, resolver, reason)
        _alive.pop(id(borrower), None)
    del target, replaced
    del owner  # which may be the last reference to it


def _outdate(owner: OwnedProxy[Any]) -> Any:
    """Let the next use of an owner get what is stored; otherwise as `_end`.

    The cached class stays, so that looking at the owner need not fetch: what replaces an object
    is of its class.
    """
    if isinstance(owner.__proxy_default_hash__, int):
        owner.__proxy_default_hash__ = None
    if not _is_held(owner):
        return None
    target = _held(owner)
    del owner.__proxy_held__
    return target


def _destroy(owner: OwnedProxy[Any], reason: str, *, anyway: bool = False) -> None:
    """End an owner and evict the object.

    Args:
        owner: One that has ended is left alone.
        reason: Given to who uses it nevertheless.
        anyway: Also if it is borrowed.

    Raises:
        RuntimeError: The object is borrowed.
    """
    # Workflows drop owners by the thousand: what most of them do not need is not called.
    resolver: Any = _resolver(owner)
    target = None
    with _lock:
        if resolver.ended is not None:
            return
        readers, writers = owner.__proxy_ref_count__, owner.__proxy_ref_mut_count__
        # Who borrows keeps the owner alive: if that is being collected, so are they.
        if (readers or writers) and not (anyway or gc.is_finalized(owner)):
            raise RuntimeError(
                f"Cannot safely delete OwnedProxy: it is borrowed {_borrowed(readers, writers)}"
            )
        resolver.ended = reason
        if _arrived:
            _unlist(resolver)
        ours = _alive.pop(id(owner), None) is not None
        if _is_held(owner):
            target = _end(owner, resolver, reason)
    del target
    if not ours:
        return
    factory: Any = resolver.factory
    try:
        evict_from(factory.store_config, factory.key)
    except Exception:  # a destructor has nobody to raise to
        logger.exception("cannot evict the object of %r, it stays in the store", factory)


def _move(ref: BaseRefProxy[Any], resolver: _RefResolver) -> Any:
    """End a reference because it is being pickled; otherwise as `_end`."""
    # Of who lends it to be changed elsewhere, too: who waits for a task may use the owner before
    # the borrow has ended, which is noted a moment later.
    owner = _writes_for(ref)
    replaced = None if owner is None else _outdate(owner)
    if issubclass(type(ref), OwnedProxy):
        if _alive.pop(id(ref), None) is None:
            raise _invalid(resolver, ref, _FORKED)
        _unlist(resolver)
    return _end(ref, resolver, _MOVED), replaced


def _writes_for(ref: BaseRefProxy[Any]) -> OwnedProxy[Any] | None:
    """Return the owner of a `RefMutProxy`, if that is in this process."""
    if not issubclass(type(ref), RefMutProxy):
        return None
    owner: OwnedProxy[Any] | None = object.__getattribute__(ref, "__proxy_owner__")
    return owner


def _proxy_trampoline(
    kind: str,
    factory: FactoryType[T],
    default_class: DefaultClassType = None,
    default_hash: DefaultHashType = None,
    version: int = 0,
) -> BaseRefProxy[T]:
    """Rebuild a pickled reference: unresolved, with the factory and the defaults it had."""
    ref = _KINDS[kind](factory)
    ref.__proxy_default_class__ = default_class
    ref.__proxy_default_hash__ = _arriving(default_hash, default_class)
    if not isinstance(factory, StoreFactory):
        return ref
    ref.__proxy_version__ = version
    if version:
        _forget_cached(factory)
    if issubclass(type(ref), OwnedProxy):
        store_at(factory.store_config)  # evicts also if it is not registered any more by then
        _arrive(ref, factory.key)
    return ref


def _forget_cached(factory: Any) -> None:
    """Let this process's cache forget an object that another process may have replaced."""
    store = store_at(factory.store_config) if isinstance(factory, StoreFactory) else None
    if store is not None:
        store._forget(factory.key)


def _arrive(owner: BaseRefProxy[Any], key: Any) -> None:
    resolver = _state(owner)
    with _lock:
        first = _arrived.get(key)
        if first is not None and first.ended is None:
            _alive.pop(id(owner), None)
            _end(owner, resolver, _TWICE)
        else:
            _arrived[key] = resolver


# -- Functions on references ----------------------------------------------------------------


def _require_owner(proxy: Proxy[Any], act: str) -> None:
    if not issubclass(type(proxy), OwnedProxy):
        raise ReferenceNotOwnedError(act, type(proxy).__name__, "an OwnedProxy")


def _store_of(factory: StoreFactory[Any]) -> Store[Any]:
    store: Store[Any] = store_at(factory.store_config) or factory.get_store()
    return store


def _populate(ref: BaseRefProxy[T], source: Proxy[T]) -> None:
    ref.__proxy_default_class__ = source.__proxy_default_class__
    ref.__proxy_default_hash__ = source.__proxy_default_hash__
    if _is_held(source):
        ref.__proxy_wrapped__ = _held(source)


def borrow(proxy: OwnedProxy[T], *, populate_target: bool = True) -> RefProxy[T]:
    """Return a reference to read the object; never resolves.

    Args:
        proxy: The owner.
        populate_target: Let the reference have the owner's target, if that is resolved, and
            its cached defaults.

    Raises:
        ReferenceNotOwnedError: `proxy` is no owner.
        ReferenceInvalidError: It has ended.
        MutableBorrowError: Somebody has borrowed the object to write.
    """
    _require_owner(proxy, "borrow")
    borrowed: RefProxy[T] = RefProxy(_require_valid(proxy).factory, owner=proxy)
    if populate_target:
        _populate(borrowed, proxy)
    return borrowed


def mut_borrow(proxy: OwnedProxy[T], *, populate_target: bool = True) -> RefMutProxy[T]:
    """Return the only reference to the object, to change it; never resolves.

    Arguments are those of `borrow`. Changes stay in this process, where owner and reference
    have the same target, until `update`. Once the reference is pickled, and again when the
    borrow ends then, the owner forgets its target: its next use gets what is stored, and what
    was changed here without `update` is gone.

    Raises:
        ReferenceNotOwnedError: `proxy` is no owner.
        ReferenceInvalidError: It has ended.
        MutableBorrowError: Somebody has borrowed the object.
    """
    _require_owner(proxy, "mut_borrow")
    borrowed: RefMutProxy[T] = RefMutProxy(_require_valid(proxy).factory, owner=proxy)
    if populate_target:
        _populate(borrowed, proxy)
    return borrowed


def clone(proxy: OwnedProxy[T]) -> OwnedProxy[T]:
    """Store the object once more, as it was stored, and return the owner of that.

    Never resolves; if the owner is resolved, the target is copied (`copy.deepcopy`).

    Args:
        proxy: The owner.

    Raises:
        ReferenceNotOwnedError: `proxy` is no owner.
        ReferenceInvalidError: It has ended.
        ProxyResolveMissingKeyError: The object is gone.
    """
    _require_owner(proxy, "clone")
    factory = _require_valid(proxy).factory
    is_resolved = _is_held(proxy)
    target = copy.deepcopy(_held(proxy)) if is_resolved else None  # may fail: before storing
    key = _store_of(factory)._copy(factory.key)
    new: StoreFactory[T] = StoreFactory(
        key, factory.store_config, evict=factory.evict, deserializer=factory.deserializer
    )
    cloned: OwnedProxy[T] = OwnedProxy(new)
    default_class = proxy.__proxy_default_class__
    cloned.__proxy_default_class__ = default_class
    if getattr(default_class, "__hash__", None) is not object.__hash__:  # else by identity
        cloned.__proxy_default_hash__ = proxy.__proxy_default_hash__
    if is_resolved:
        cloned.__proxy_wrapped__ = target  # type: ignore[assignment]
    return cloned


def into_owned(proxy: Proxy[T], *, populate_target: bool = True) -> OwnedProxy[T]:
    """Return a new owner of the object of a proxy; never resolves.

    The proxy can still be used, as long as the owner lives; its factory no longer evicts.

    Args:
        proxy: One that a store has made, and nobody else owns.
        populate_target: As for `borrow`.

    Raises:
        ValueError: `proxy` is a reference already.
        ProxyStoreFactoryError: It was not made by a store.
    """
    if issubclass(type(proxy), BaseRefProxy):
        raise ValueError(
            f"Only a base proxy can be turned into an owned one, got a {type(proxy).__name__}"
        )
    factory: StoreFactory[T] = _factory_of(proxy)
    factory.disown()
    owner = OwnedProxy(factory)
    if populate_target:
        _populate(owner, proxy)
    return owner


def update(proxy: OwnedProxy[T] | RefMutProxy[T], *, serializer: SerializerT | None = None) -> None:
    """Put the target behind the key of the object, in place of what is stored.

    Does nothing if the proxy is not resolved. References that are pickled from now on do not
    get the old object from the cache of the process they go to; plain proxies, and references
    that are resolved already, may.

    Args:
        proxy: The owner, or who has borrowed the object to change it.
        serializer: In place of the store's.

    Raises:
        ReferenceNotOwnedError: `proxy` is neither.
        ReferenceInvalidError: It has ended.
        MutableBorrowError: It is the owner, and somebody has borrowed the object.
        NotImplementedError: The connector cannot replace objects (it is not a
            `DeferrableConnector`).
    """
    if not issubclass(type(proxy), (OwnedProxy, RefMutProxy)):
        raise ReferenceNotOwnedError(
            "update", type(proxy).__name__, "an OwnedProxy or a RefMutProxy"
        )
    factory = _require_valid(proxy).factory
    owner: Any = proxy
    if issubclass(type(proxy), OwnedProxy):
        with _lock:
            _allow(owner, "update")
    else:
        owner = object.__getattribute__(proxy, "__proxy_owner__")
    if not _is_held(proxy):
        return
    _store_of(factory)._set(factory.key, _held(proxy), serializer=serializer)
    proxy.__proxy_version__ += 1
    if owner is not proxy and owner is not None:
        owner.__proxy_version__ += 1
