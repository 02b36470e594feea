"""Owners, borrows, clones, pickles and drops, in any order, against a model of them."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from proxystore.connectors.local import LocalConnector
from proxystore.proxy import ProxyResolveError, is_resolved
from proxystore.store import Store
from proxystore.store.exceptions import ProxyResolveMissingKeyError
from proxystore.store.ref import (
    MutableBorrowError,
    OwnedProxy,
    ReferenceInvalidError,
    ReferenceNotOwnedError,
    RefMutProxy,
    RefProxy,
    borrow,
    clone,
    into_owned,
    mut_borrow,
    update,
)
from proxystore.store.scopes import mark_refs_out_of_scope
from proxystore.store.utils import get_key


@dataclass(eq=False)
class Model:
    """What a reference should be.

    Attributes:
        kind: Its class.
        key: Of its object.
        target: What it has; None: not resolved.
        owner: Whose count it is in. None: nobody's.
        state: "valid", "moved" or "ended".
        counted: References that are in this one's counts.
    """

    kind: type
    key: Any
    target: Any = None
    owner: Model | None = None
    state: str = "valid"
    counted: set[Model] = field(default_factory=set)

    @property
    def readers(self) -> int:
        return sum(ref.kind is RefProxy for ref in self.counted)

    @property
    def writers(self) -> int:
        return sum(ref.kind is RefMutProxy for ref in self.counted)


def outcome(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return what a function returns, or the class of what it raises.

    Not the exception: that would keep frames, and with them references, alive.
    """
    try:
        return function(*args, **kwargs)
    except Exception as error:  # noqa: BLE001 - whatever it is, the model says whether it should be
        return type(error)


# Which one, of however many there are.
picks = st.integers(0, 1_000)


class Ownership(RuleBasedStateMachine):
    """References in one process, as the names in a program hold them."""

    def __init__(self) -> None:
        super().__init__()
        self.store = Store("machine", LocalConnector(), register=True)
        self.stored: dict[Any, Any] = {}
        self.held: list[tuple[Any, Model]] = []
        self.pickles: list[tuple[bytes, type, Any]] = []

    def teardown(self) -> None:
        try:
            while self.held:
                self.drop(0)
                self.the_store_has_what_is_owned()
        finally:
            self.store.close()

    # -- the model's part

    def valid_owner(self, key: Any, models: set[Model]) -> bool:
        return any(m.kind is OwnedProxy and m.key == key and m.state == "valid" for m in models)

    def alive(self) -> set[Model]:
        held = {model for _, model in self.held}
        return held | {model.owner for model in held if model.owner is not None}

    def outdate(self, model: Model) -> None:
        """Let the owner forget its target: a borrow of it was sent to where it may be changed."""
        if model.kind is RefMutProxy and model.state == "moved" and model.owner is not None:
            model.owner.target = None

    def give_back(self, model: Model) -> None:
        self.outdate(model)
        owner, model.owner = model.owner, None
        if owner is not None:
            owner.counted.discard(model)
            if owner not in self.alive():
                self.end(owner)

    def end(self, model: Model) -> None:
        """Let the model's reference be destroyed."""
        if model.kind is OwnedProxy and model.state == "valid":
            self.stored.pop(model.key, None)
        if model.state == "valid":
            model.state, model.target = "ended", None
        self.give_back(model)

    def expect(self, model: Model, act: str) -> type | None:
        """Return the error that an act of owners should give."""
        writes = act in ("mut_borrow", "update")
        if model.kind is not OwnedProxy and (act, model.kind) != ("update", RefMutProxy):
            return ReferenceNotOwnedError
        if model.state != "valid":
            return ReferenceInvalidError
        if model.kind is OwnedProxy and (model.writers or (writes and model.readers)):
            return None if act == "clone" else MutableBorrowError
        return None

    # -- rules

    @rule(value=st.integers(0, 9), populate=st.booleans(), converted=st.booleans())
    def own(self, value: int, populate: bool, converted: bool) -> None:
        target = [value]
        if converted:
            ref = into_owned(self.store.proxy(target), populate_target=populate)
        else:
            ref = self.store.owned_proxy(target, populate_target=populate)
        key = get_key(ref)
        self.stored[key] = [value]
        self.held.append((ref, Model(OwnedProxy, key, [value] if populate else None)))

    @precondition(lambda self: self.held)
    @rule(pick=picks, mutably=st.booleans(), populate=st.booleans())
    def lend(self, pick: int, mutably: bool, populate: bool) -> None:
        ref, model = self.held[pick % len(self.held)]
        function: Any = mut_borrow if mutably else borrow
        got = outcome(function, ref, populate_target=populate)
        error = self.expect(model, function.__name__)
        if error is not None:
            assert got is error
            return
        kind = RefMutProxy if mutably else RefProxy
        assert type(got) is kind
        lent = Model(kind, model.key, model.target if populate else None, model)
        model.counted.add(lent)
        self.held.append((got, lent))

    @precondition(lambda self: self.held)
    @rule(pick=picks)
    def clone(self, pick: int) -> None:
        ref, model = self.held[pick % len(self.held)]
        got = outcome(clone, ref)
        error = self.expect(model, "clone")
        if error is None and model.key not in self.stored:
            error = ProxyResolveMissingKeyError
        if error is not None:
            assert got is error
            return
        key = get_key(got)
        self.stored[key] = list(self.stored[model.key])
        target = None if model.target is None else list(model.target)
        self.held.append((got, Model(OwnedProxy, key, target)))

    @precondition(lambda self: self.held)
    @rule(pick=picks, value=st.integers(10, 19))
    def change(self, pick: int, value: int) -> None:
        """Change the target; whoever has the same one sees that."""
        ref, model = self.held[pick % len(self.held)]
        if model.target is not None:
            ref[0] = model.target[0] = value

    @precondition(lambda self: self.held)
    @rule(pick=picks)
    def update(self, pick: int) -> None:
        ref, model = self.held[pick % len(self.held)]
        got = outcome(update, ref)
        error = self.expect(model, "update")
        assert got is error
        if error is None and model.target is not None:
            self.stored[model.key] = list(model.target)

    @precondition(lambda self: self.held)
    @rule(pick=picks)
    def use(self, pick: int) -> None:
        ref, model = self.held[pick % len(self.held)]
        got = outcome(list, ref)
        if model.state != "valid":
            assert got is ReferenceInvalidError
        elif model.target is None and model.key not in self.stored:
            # Or there is a copy of it in the cache, see the contract of `evict`.
            assert got is ProxyResolveError
        else:
            expected = model.target or self.stored[model.key]
            assert got == expected
            if model.target is None:
                # An object of this reference's own, or the store's cached one.
                ref.__proxy_wrapped__, model.target = list(expected), list(expected)
                self.store.cache.evict(model.key)

    @precondition(lambda self: self.held)
    @rule(pick=picks)
    def pickle(self, pick: int) -> None:
        ref, model = self.held[pick % len(self.held)]
        got = outcome(pickle.dumps, ref)
        if model.state == "ended":
            assert got is ReferenceInvalidError
            return
        was_valid = model.state == "valid"
        model.state, model.target = "moved", None
        if was_valid:  # pickled again it has told its owner already
            self.outdate(model)
        self.pickles.append((got, model.kind, model.key))

    @precondition(lambda self: self.pickles)
    @rule(pick=picks)
    def unpickle(self, pick: int) -> None:
        data, kind, key = self.pickles[pick % len(self.pickles)]
        ref = pickle.loads(data)
        model = Model(kind, key)
        if kind is OwnedProxy and self.valid_owner(key, self.alive()):
            model.state = "ended"
        assert type(ref) is kind
        self.held.append((ref, model))

    @precondition(lambda self: self.held)
    @rule(pick=picks)
    def drop(self, pick: int) -> None:
        ref, model = self.held.pop(pick % len(self.held))
        if model not in self.alive():
            self.end(model)
        del ref

    @precondition(lambda self: self.held)
    @rule(pick=picks)
    def destroy(self, pick: int) -> None:
        ref, model = self.held[pick % len(self.held)]
        got = outcome(ref.__del__)
        if model.kind is OwnedProxy and model.state == "valid" and model.counted:
            assert got is RuntimeError
        else:
            assert got is None
            self.end(model)

    @precondition(lambda self: self.held)
    @rule(pick=picks)
    def mark(self, pick: int) -> None:
        ref, model = self.held[pick % len(self.held)]
        if model.kind is OwnedProxy:
            return
        got = outcome(mark_refs_out_of_scope, ref)
        if model.owner is None and model.state == "valid":
            assert got is RuntimeError
        else:
            assert got is None
            self.end(model)

    # -- what must be true at all times

    @invariant()
    def the_store_has_what_is_owned(self) -> None:
        assert set(self.store.connector.keys()) == set(self.stored)
        for key, obj in self.stored.items():
            assert self.store.get(key, cache=False) == obj

    @invariant()
    def references_are_as_modelled(self) -> None:
        for ref, model in self.held:
            assert ref.__proxy_valid__ is (model.state == "valid")
            assert is_resolved(ref) is (model.target is not None)
            if model.target is not None:
                assert ref == model.target
            if model.kind is OwnedProxy:
                assert ref.__proxy_ref_count__ == model.readers
                assert ref.__proxy_ref_mut_count__ == model.writers
            else:
                assert (ref.__proxy_owner__ is None) is (model.owner is None)

    @invariant()
    def there_is_one_owner(self) -> None:
        owners = [m.key for m in self.alive() if m.kind is OwnedProxy and m.state == "valid"]
        assert len(owners) == len(set(owners))


TestOwnership = Ownership.TestCase
TestOwnership.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
