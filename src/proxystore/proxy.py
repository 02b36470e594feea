"""A transparent stand-in for an object that is fetched when it is first used.

The operators are those of the C type of lazy-object-proxy. This module adds what that type does
not have: state of our own (a cached class and hash, so that looking at a proxy need not fetch),
one fetch at a time, errors and pickles that travel. A proxy knows its factory and nothing else;
stores are one kind of factory.

Two rules for whoever changes it:

- Inside `Proxy`, `self.name` finds what the class defines, and otherwise *resolves*. The target
  is read with `_held(self)` (resolves), or after `_is_held(self)` (never does).
- The C type calls its factory whenever its target is unset and stores the result without
  looking whether somebody else has stored one meanwhile. Only `_Resolver` may be that factory.
"""

from __future__ import annotations

import copy
import copyreg
import math
import operator
import os
import pickle
import sys
import threading
import traceback
import types
import weakref
from collections.abc import Callable, Generator
from types import FrameType, FunctionType
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

if TYPE_CHECKING:
    from typing_extensions import Self

    from proxystore._operators import Transparent as _CProxy
else:
    # Not `lazy_object_proxy.Proxy`, which may be written in Python where no compiler was found:
    # ten times slower, and of another layout.
    from lazy_object_proxy.cext import Proxy as _CProxy

__all__ = [
    "DefaultClassType",
    "DefaultHashType",
    "FactoryType",
    "Proxy",
    "ProxyLocker",
    "ProxyOr",
    "ProxyResolveError",
    "extract",
    "get_factory",
    "is_resolved",
    "resolve",
]

T = TypeVar("T")
FactoryType = Callable[[], T]
DefaultClassType = type | None
DefaultHashType = Exception | int | None


class ProxyResolveError(Exception):
    """The object behind a proxy could not be fetched.

    Pickling keeps `cause`. A cause that cannot be pickled, or not be rebuilt where it arrives, is
    replaced by a description of it: the report of a failure must not become a failure.

    Attributes:
        cause: What the factory raised.
    """

    def __init__(self, message: str, cause: Exception) -> None:
        super().__init__(message, cause)
        self.cause = cause

    def __str__(self) -> str:
        return str(self.args[0])

    def __reduce__(self) -> tuple[Any, ...]:
        own = {name: value for name, value in vars(self).items() if name != "cause"}
        if type(self) in copyreg.dispatch_table:
            # tblib, which Dask and Parsl switch on, pickles these as well, once this has returned.
            self.__cause__ = _fit_to_travel(self.__cause__)
            self.__context__ = _fit_to_travel(self.__context__)
        return _rebuild_error, (type(self), str(self), *_pack_cause(self.cause)), own


class _CauseDescription(Exception):
    """Stands in for a cause that could not travel."""


def _fit_to_travel(error: BaseException | None) -> BaseException | None:
    """Return an exception, or a description if it cannot be pickled or rebuilt."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - any __reduce__ or constructor may raise anything
        text = "".join(traceback.format_exception_only(error)).strip()
        return _CauseDescription(f"{text} (the exception itself could not be pickled)")
    return error


def _pack_cause(cause: Exception) -> tuple[bytes | None, str]:
    """Return the pickled cause, None where that is impossible, and a description of it."""
    import cloudpickle  # late: 20 ms that only a failure has to pay

    text = "".join(traceback.format_exception_only(type(cause), cause)).strip()
    try:
        return cloudpickle.dumps(cause), text
    except Exception:  # noqa: BLE001 - any __reduce__ may raise anything
        return None, text


def _rebuild_error(
    kind: type[ProxyResolveError], message: str, cause: bytes | None, description: str
) -> ProxyResolveError:
    original: Any = None
    if cause is not None:
        try:
            original = pickle.loads(cause)
        except Exception:  # noqa: BLE001 - its class may not exist here
            original = None
    if not isinstance(original, Exception):
        original = _CauseDescription(f"{description} (the exception itself could not be pickled)")
    error = kind(message, original)
    error.__cause__ = original
    return error


# -- One resolve at a time ------------------------------------------------------------------


class _Flight:
    """A resolve under way.

    Attributes:
        thread: Who resolves.
        landed: Locked until it is over.
        failure: Arguments of its ProxyResolveError, for those who have waited for it. None: it
            has not failed, or was interrupted.
    """

    __slots__ = ("failure", "landed", "thread")

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.landed = threading.Lock()
        self.landed.acquire()
        self.failure: tuple[Any, ...] | None = None


# Only proxies that are being resolved right now, by id() of their resolver: most are never
# resolved in the process that made them and need no lock. setdefault() decides who goes first.
_flights: dict[int, _Flight] = {}


class _Resolver(weakref.ref["Proxy[Any]"]):
    """What the C proxy calls to get its target.

    A weak reference to its proxy: a strong one would be a cycle, and an object that is evicted
    when its proxy dies would have to wait for the garbage collector.

    Attributes:
        factory: The user's factory. Unset while the proxy is not initialized.
    """

    __slots__ = ("factory",)
    factory: Any

    def __call__(self) -> Any:
        proxy = weakref.ref.__call__(self)
        if proxy is None:  # the collector is at it, no thread can see the proxy any more
            return self._produce()
        self._fill(proxy)
        # What we return is stored over what _fill() or another thread has stored, whose
        # reference would never be released: take it back. No thread can run from the second line
        # below to the store: attribute access to C descriptors and a return are no points where
        # the interpreter switches.
        target = proxy.__proxy_held__
        del proxy.__proxy_held__
        return target

    def __repr__(self) -> str:  # the C proxy shows this as the factory
        return repr(self.factory) if hasattr(self, "factory") else "<missing>"

    def _fill(self, proxy: Proxy[Any]) -> None:
        """Store the target in the proxy, or wait until another thread has."""
        while not _is_held(proxy):
            ahead = mine = _Flight()
            try:
                ahead = _flights.setdefault(id(self), mine)
                if ahead.thread == mine.thread:
                    # Ours, or (a factory, finalizer or signal handler that uses the proxy it
                    # interrupts) one that waits for us: it must not wait for itself.
                    if not _is_held(proxy):  # another flight may have landed before ours began
                        proxy.__proxy_wrapped__ = self._produce(proxy)
                    return
                with ahead.landed:
                    pass
                if ahead.failure is not None:
                    message, cause = ahead.failure
                    raise ProxyResolveError(message, cause) from cause
            except ProxyResolveError as error:
                mine.failure = error.args
                raise
            finally:
                if _flights.get(id(self)) is mine:
                    del _flights[id(self)]
                mine.landed.release()
                # They hold the failure, whose traceback holds this frame.
                del ahead, mine

    def _produce(self, proxy: Proxy[Any] | None = None) -> Any:
        """Call the factory.

        Raises:
            ProxyResolveError: It raised an Exception, or there is none.
        """
        try:
            factory = self.factory
        except AttributeError as error:
            raise ProxyResolveError(
                "Proxy is not initialized: __proxy_factory__ is missing; call __init__() or "
                "assign __proxy_wrapped__",
                error,
            ) from error
        try:
            target = factory()
            if target is not None and target is proxy:
                raise ValueError("the factory returned the proxy that it should resolve")
        except Exception as error:
            raise ProxyResolveError(
                f"cannot resolve the proxy, its factory raised {_in_short(error)}", error
            ) from error
        return target


def _in_short(error: Exception) -> str:
    # The cause is shown beside what it has caused: all of it need not be said twice.
    name, reason = type(error).__name__, str(error)
    short = reason if len(reason) <= _REASON else f"{reason[:_REASON].rstrip()}..."
    return f"{name}: {short}"


# How much of a reason, in characters: a few sentences, since a framework's log may show only this.
_REASON = 300


def _after_fork() -> None:
    global _process
    _flights.clear()  # the threads that would have finished them are not here
    _process = _new_process_id()


# -- Hashes that hold in one process only ---------------------------------------------------

# Hashes of str, bytes, and all that is made of them, are salted: equal in two processes only if
# they share the salt (forked, or with PYTHONHASHSEED set). This one tells.
_salt = hash("proxystore.proxy")


def _new_process_id() -> int:
    return int.from_bytes(os.urandom(8), "little")


# An object that hashes by identity has its hash in no other process, not even a forked one.
_process = _new_process_id()
os.register_at_fork(after_in_child=_after_fork)


class _LocalHash(int):
    """A hash on its way between processes, good only where it comes from.

    Attributes:
        origin: `_salt` or `_process` of the process that computed it.
    """

    origin: int

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _local_hash, (int(self), self.origin)


def _local_hash(value: int, origin: int) -> _LocalHash:
    marked = _LocalHash(value)
    marked.origin = origin
    return marked


# Numbers that are equal hash alike, in every process.
_NUMBERS = frozenset({bool, complex, float, int})


class _ClassByValue:
    """A class on its way between processes that no pickler finds by its name.

    Attributes:
        pickled: The class, as cloudpickle writes it.
    """

    __slots__ = ("pickled",)

    def __init__(self, pickled: bytes) -> None:
        self.pickled = pickled

    def __reduce__(self) -> tuple[Any, ...]:
        return _class_from, (self.pickled,)


def _class_from(pickled: bytes) -> DefaultClassType:
    try:
        return pickle.loads(pickled)  # type: ignore[no-any-return] # what was pickled
    except Exception:  # noqa: BLE001 - what it is made of may not exist here: only a use will tell
        return None


def _departing(
    default_class: DefaultClassType, default_hash: DefaultHashType
) -> tuple[DefaultClassType | _ClassByValue, DefaultHashType]:
    """Return both defaults as they can travel."""
    if default_class is None or _is_found_by_name(default_class):
        return default_class, _departing_hash(default_hash, default_class)
    by_value = _by_value(default_class)
    if by_value is not None:
        return by_value, _departing_hash(default_hash, default_class)
    # Without a class, as that of {}.keys(), which would have said all of such an error.
    is_error = isinstance(default_hash, TypeError)
    return None, default_hash if is_error else _departing_hash(default_hash, default_class)


def _by_value(cls: type) -> _ClassByValue | None:
    """Return a class that is local, or as that of `len` has no name; None if that cannot be."""
    import cloudpickle  # as in _pack_cause()

    outer = getattr(_nesting, "classes", ())
    _nesting.classes = (*outer, cls)
    try:
        # A method of it may refer to the proxy. And of classes that cannot be changed,
        # cloudpickle (3.1) writes what it cannot read again, unless it knows their names.
        if cls in outer or (cls.__flags__ & _IMMUTABLE and cls not in vars(types).values()):
            return None
        return _ClassByValue(cloudpickle.dumps(cls))
    except Exception:  # noqa: BLE001 - any metaclass may raise anything
        return None
    finally:
        _nesting.classes = outer


# Which classes _by_value() is about to pickle, one within the other.
_nesting = threading.local()


def _is_found_by_name(cls: type) -> bool:
    """Say whether pickle can refer to a class."""
    try:
        found: Any = sys.modules[cls.__module__]
        for name in cls.__qualname__.split("."):
            found = getattr(found, name)
    except Exception:  # noqa: BLE001 - any module or metaclass may raise anything
        return False
    return found is cls


def _departing_hash(
    default_hash: DefaultHashType, default_class: DefaultClassType
) -> DefaultHashType:
    """Mark a hash that may mean nothing in another process."""
    if isinstance(default_hash, TypeError) and _same_error(default_hash, default_class):
        return None  # the class says it all: _arriving() makes the error again
    # 0: what "" and b"" hash to, whatever the salt.
    if type(default_hash) is not int or default_hash == 0 or default_class in _NUMBERS:
        return default_hash
    by_identity = getattr(default_class, "__hash__", None) is object.__hash__
    return _local_hash(default_hash, _process if by_identity else _salt)


def _arriving(default_hash: DefaultHashType, default_class: DefaultClassType) -> DefaultHashType:
    """Unmark a hash that has come home. A foreign one stays marked: it may yet travel back."""
    if default_hash is None and getattr(default_class, "__hash__", hash) is None:
        return _unhashable(default_class)
    if isinstance(default_hash, _LocalHash) and default_hash.origin in (_salt, _process):
        return int(default_hash)
    return default_hash


# A pickled exception is 60 bytes, and 200 where tblib is switched on, as by Dask and Parsl.
def _unhashable(kind: Any) -> TypeError:
    """Return what `hash` raises for an instance of a class that has no hash."""
    # Classes written in C are shown with their module, all others without.
    in_c = not kind.__flags__ & _HEAP_TYPE and kind.__module__ != "builtins"
    name = f"{kind.__module__}.{kind.__qualname__}" if in_c else kind.__name__
    return TypeError(f"unhashable type: {name!r}")


_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE
_IMMUTABLE = 1 << 8  # Py_TPFLAGS_IMMUTABLETYPE


def _same_error(error: TypeError, kind: DefaultClassType) -> bool:
    return getattr(kind, "__hash__", hash) is None and str(error) == str(_unhashable(kind))


# -- Attributes that the class and its instances both have ----------------------------------


class _Forward:
    """On an instance: the target's attribute of that name, also to set and delete."""

    name: str

    def __get__(self, proxy: Proxy[Any] | None, owner: Any = None) -> Any:
        return self if proxy is None else getattr(_held(proxy), self.name)

    def __set__(self, proxy: Proxy[Any], value: Any) -> None:
        setattr(_held(proxy), self.name, value)

    def __delete__(self, proxy: Proxy[Any]) -> None:
        delattr(_held(proxy), self.name)

    def __set_name__(self, owner: Any, name: str) -> None:
        self.name = name


class _Absent(_Forward):
    """On the class: nothing. For public names of the C type that a target may have as well."""

    def __get__(self, proxy: Proxy[Any] | None, owner: Any = None) -> Any:
        if proxy is None:
            raise AttributeError(f"type object 'Proxy' has no attribute {self.name!r}")
        return super().__get__(proxy, owner)


class _OrigClass(_Forward):
    """Ignores what `Proxy[int](factory)` notes on the new instance; it would resolve it."""

    def __set__(self, proxy: Proxy[Any], value: Any) -> None:
        pass


class _Doc(_Forward):
    """On the class: the class's docstring."""

    name = "__doc__"

    def __init__(self, text: str | None) -> None:
        self.text = text

    def __get__(self, proxy: Proxy[Any] | None, owner: Any = None) -> Any:
        return self.text if proxy is None else super().__get__(proxy, owner)


class _Annotations(_Forward, dict[str, Any]):
    """On the class: its annotations. `typing` and `inspect` read them from the class's dict."""

    name = "__annotations__"


class _Module(_Forward, str):
    """On the class: the name of its module, which `type` wants to be a string."""

    name = "__module__"

    def __get__(self, proxy: Proxy[Any] | None, owner: Any = None) -> Any:
        if proxy is None:
            return self
        default = None if _is_held(proxy) else proxy.__proxy_default_class__
        if default is None:
            return super().__get__(proxy, owner)
        for base in default.__mro__:
            if isinstance(text := vars(base).get(self.name), str):
                return text
        raise AttributeError(self.name)  # which is where Proxy.__getattr__ goes on

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (str(self),)  # pickles of the class carry it, and must not need this class


def _forward_texts(cls: type) -> None:
    """Let a class keep its texts to itself: on instances they are the target's."""
    cls.__doc__ = _Doc(cls.__doc__)  # type: ignore[assignment]
    cls.__module__ = _Module(cls.__module__)
    cls.__annotations__ = _Annotations(cls.__annotations__)


# -- The proxy ------------------------------------------------------------------------------

# The C type's own state. Called directly these never meet `Proxy.__getattr__`.
_held: Callable[[Any], Any] = vars(_CProxy)["__wrapped__"].__get__
_is_held: Callable[[Any], bool] = vars(_CProxy)["__resolved__"].__get__
_resolver: Callable[[Any], _Resolver] = vars(_CProxy)["__factory__"].__get__
_set_resolver: Callable[[Any, _Resolver], None] = vars(_CProxy)["__factory__"].__set__

# What notebooks, picklers and array libraries, Dask among them, ask any object they meet.
_PROBES = (
    "__dask_",
    "__array_",
    "__arrow_",
    "__cuda_array_",
    "__dataframe_",
    "__dlpack_",
    "__module__",
    "__rich_",
    "_ipython_",
    "_repr_",
)


def _has(kind: type, name: str) -> bool:
    """Return whether instances of a class find that name on it, metaclasses aside."""
    return any(name in vars(base) for base in kind.__mro__)


def _is_cloudpickle(asker: FrameType) -> bool:
    """Return whether cloudpickle asks, also a copy of it in another package.

    It asks of any object whether it is a function. To find out would fetch the target, and to say
    yes would put the target's code into the pickle in place of the proxy.
    """
    name: str = asker.f_globals.get("__name__", "")
    return name.endswith("cloudpickle")


def _bare(value: Any) -> Any:
    """Return the target of a proxy, and anything else as it is."""
    return _held(value) if isinstance(value, Proxy) else value


class Proxy(_CProxy, Generic[T]):
    """An object that becomes another one, its target, when it is first used.

    The first use calls the factory, once, also if several threads come at the same time; from
    then on operators, attributes and `isinstance` are the target's. What is never the target's:
    `type(proxy)`, `repr(proxy)` and `id(proxy)`.

    Looking is using: `hasattr`, `isinstance` and `hash` resolve a proxy. Cached defaults answer
    `isinstance` and `hash`, and the questions that Dask, NumPy and notebooks ask any object
    (`__dask_*__`, `__array_*__`, `_repr_*_`), without.

    A pickle holds the factory and the defaults, never the target.

    Args:
        factory: Called without arguments to get the target.
        cache_defaults: Keep the class and the hash of `target` for while the proxy is not
            resolved; of use to those who unpickle it. Without a target there is nothing to keep.
        target: The target, if it is at hand: the proxy is resolved from the start. None: not at
            hand.

    Raises:
        TypeError: `factory` is not callable.

    >>> numbers = Proxy(lambda: [1, 2, 3])
    >>> is_resolved(numbers)
    False
    >>> sum(numbers)
    6
    """

    __slots__ = ("__proxy_default_class__", "__proxy_default_hash__", "__weakref__")

    if TYPE_CHECKING:
        __proxy_default_class__: DefaultClassType
        __proxy_default_hash__: DefaultHashType
        __proxy_held__: Any
        __proxy_resolved__: bool
    else:
        # That a type checker sees nothing of these is right: on instances they are forwarded.
        __dict__ = _Forward()
        __weakref__ = _Forward()
        __orig_class__ = _OrigClass()
        __wrapped__ = _Absent()
        __factory__ = _Absent()
        __resolved__ = _Absent()
        # As C descriptors: no Python code, and no other thread, runs when they are read or set.
        __proxy_held__ = vars(_CProxy)["__wrapped__"]
        __proxy_resolved__ = vars(_CProxy)["__resolved__"]
        # The C type takes any exception of a class attribute for "no such attribute", and would
        # call a factory that has just failed, or been interrupted, again. This takes only
        # AttributeError, and from Python 3.12 a missing attribute costs it nothing.
        __getattribute__ = object.__getattribute__

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Return a proxy without a factory: it can be inspected, not used."""
        self = _CProxy.__new__(cls)
        _set_resolver(self, _Resolver(self))
        self.__proxy_default_class__ = None
        self.__proxy_default_hash__ = None
        return self

    # Never the C type's __init__: on a proxy that is resolved it frees the target it still holds.
    def __init__(
        self, factory: FactoryType[T], *, cache_defaults: bool = False, target: T | None = None
    ) -> None:
        if not callable(factory):
            raise TypeError(f"factory must be callable, got {type(factory).__name__}")
        _resolver(self).factory = factory
        self.__proxy_default_class__ = None
        self.__proxy_default_hash__ = None
        if target is None:
            return
        self.__proxy_wrapped__ = target
        if cache_defaults:
            self.__proxy_default_class__ = target.__class__
            try:
                self.__proxy_default_hash__ = hash(target)
            except TypeError as error:
                # Both hold frames, and with them the proxy and its target.
                error.__traceback__ = error.__context__ = None
                self.__proxy_default_hash__ = error

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _forward_texts(cls)

    @property
    def __proxy_factory__(self) -> FactoryType[T]:
        return _resolver(self).factory  # type: ignore[no-any-return]

    @__proxy_factory__.setter
    def __proxy_factory__(self, factory: FactoryType[T]) -> None:
        _resolver(self).factory = factory

    @__proxy_factory__.deleter
    def __proxy_factory__(self) -> None:
        del _resolver(self).factory

    @property
    def __proxy_wrapped__(self) -> T:
        return _held(self)  # type: ignore[no-any-return]

    @__proxy_wrapped__.setter
    def __proxy_wrapped__(self, target: T) -> None:
        if target is self:
            raise ValueError("a proxy cannot be its own target")
        # The C type drops the old target before it has stored the new one. Held here, the old one
        # is finalized after that.
        previous = _held(self) if _is_held(self) else None
        self.__proxy_held__ = target
        del previous

    @__proxy_wrapped__.deleter
    def __proxy_wrapped__(self) -> None:
        if not _is_held(self):  # to read its target would resolve it
            raise AttributeError("the proxy is not resolved")
        previous = _held(self)
        del self.__proxy_held__
        del previous

    @property
    def __proxy_target__(self) -> T:
        if not _is_held(self):
            raise AttributeError("the proxy is not resolved")  # go on to __getattr__
        return _held(self)  # type: ignore[no-any-return]

    @__proxy_target__.setter
    def __proxy_target__(self, target: T) -> None:
        self.__proxy_wrapped__ = target

    @__proxy_target__.deleter
    def __proxy_target__(self) -> None:
        del self.__proxy_wrapped__

    def __getattr__(self, name: str) -> Any:
        if name[:1] == "_":
            if name.startswith("__proxy_") and name != "__proxy_target__":
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            if name.startswith(_PROBES) and not _is_held(self):
                default = self.__proxy_default_class__
                if default is not None and not _has(default, name):
                    raise AttributeError(f"{default.__name__!r} object has no attribute {name!r}")
        return getattr(_held(self), name)

    @property
    def __class__(self) -> Any:
        found: Any = _held(self).__class__ if _is_held(self) else self.__proxy_default_class__
        if (found is None or found is FunctionType) and _is_cloudpickle(sys._getframe(1)):
            return type(self)
        return _held(self).__class__ if found is None else found

    @__class__.setter
    def __class__(self, value: Any) -> None:
        _held(self).__class__ = value

    def __hash__(self) -> int:
        if not _is_held(self):
            default = self.__proxy_default_hash__
            if isinstance(default, Exception):
                raise copy.copy(default)  # raised itself it would keep the callers' frames alive
            if default is not None and not isinstance(default, _LocalHash):
                return default
        return hash(_held(self))

    def __reduce__(self) -> tuple[Any, ...]:
        defaults = _departing(self.__proxy_default_class__, self.__proxy_default_hash__)
        state = (self.__proxy_factory__, *defaults)
        # Others rely on the arguments being these three; only subclasses need to say what they are.
        kind = type(self)
        return _proxy_trampoline, state if kind is Proxy else (*state, kind)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return self.__reduce__()

    def __bytes__(self) -> bytes:
        return bytes(_held(self))

    def __format__(self, spec: str) -> str:
        return format(_held(self), spec) if spec else str(_held(self))

    def __next__(self) -> Any:
        return next(_held(self))

    def __index__(self) -> int:
        target = _held(self)
        has_only_int = hasattr(target, "__int__") and not hasattr(target, "__float__")
        # 2.7 is no index, and none behind a proxy either: the target says so itself.
        if has_only_int and not hasattr(target, "__index__"):
            return int(target)
        return operator.index(target)

    def __complex__(self) -> complex:
        return complex(_held(self))

    def __round__(self, *digits: Any) -> Any:
        return round(_held(self), *digits)

    def __trunc__(self) -> Any:
        return math.trunc(_held(self))

    def __floor__(self) -> Any:
        return math.floor(_held(self))

    def __ceil__(self) -> Any:
        return math.ceil(_held(self))

    # The C type's own ** never comes back from a modulus that is a proxy, and its |= loses the
    # target if it fails (lazy-object-proxy 1.13).
    def __pow__(self, exponent: Any, modulus: Any = None, /) -> Any:
        return pow(_held(self), _bare(exponent), _bare(modulus))

    def __rpow__(self, base: Any, modulus: Any = None, /) -> Any:
        return pow(base, _held(self), _bare(modulus))

    def __ior__(self, other: Any, /) -> Self:
        target: Any = _held(self)
        target |= _bare(other)
        self.__proxy_wrapped__ = target
        return self

    # The C type's own iterates over whatever cannot be awaited.
    def __await__(self) -> Generator[Any, Any, Any]:
        return _await(_held(self)).__await__()


_forward_texts(Proxy)

ProxyOr: TypeAlias = Proxy[T] | T


async def _await(target: Any) -> Any:
    return await target


def _proxy_trampoline(
    factory: FactoryType[T],
    default_class: DefaultClassType | _ClassByValue = None,
    default_hash: DefaultHashType = None,
    kind: type[Proxy[T]] = Proxy,
) -> Proxy[T]:
    """Rebuild a pickled proxy: unresolved, with the factory and the defaults it had."""
    if isinstance(default_class, _ClassByValue):  # not pickled: copy.copy() hands on what departs
        default_class = _class_from(default_class.pickled)
    proxy = Proxy.__new__(kind)
    proxy.__proxy_factory__ = factory
    proxy.__proxy_default_class__ = default_class
    proxy.__proxy_default_hash__ = _arriving(default_hash, default_class)
    return proxy


# -- Functions on proxies -------------------------------------------------------------------


class ProxyLocker(Generic[T]):
    """Holds a proxy so that it cannot be used, and so resolved, by accident.

    Args:
        proxy: Given back by `unlock()`.
    """

    def __init__(self, proxy: Proxy[T]) -> None:
        self._proxy = proxy

    def __getattribute__(self, name: str) -> Any:
        if name == "_proxy":
            raise AttributeError("the proxy is locked; unlock() returns it")
        return super().__getattribute__(name)

    def unlock(self) -> Proxy[T]:
        """Return the proxy, as it was given."""
        return super().__getattribute__("_proxy")  # type: ignore[no-any-return]


def get_factory(proxy: Proxy[T]) -> FactoryType[T]:
    """Return the factory of a proxy; never resolves."""
    return proxy.__proxy_factory__


def extract(proxy: Proxy[T]) -> T:
    """Return the target itself, not a copy; resolves the proxy if it must.

    Raises:
        ProxyResolveError: The factory failed.
    """
    return proxy.__proxy_wrapped__


def is_resolved(proxy: Proxy[T]) -> bool:
    """Return whether the target is there; never resolves."""
    return proxy.__proxy_resolved__


def resolve(proxy: Proxy[T]) -> None:
    """Fetch the target now, if that has not been done; raises as `extract` does."""
    _ = proxy.__proxy_wrapped__
