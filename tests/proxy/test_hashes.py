"""A cached hash is used only where it is the target's."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from typing import Any

import pytest

from proxystore.factory import SimpleFactory
from proxystore.proxy import Proxy, is_resolved

# Reads a proxy; says whether it has hashed without resolving, and whether the hash is right;
# writes it again.
VISIT = """
import pickle, sys
from proxystore.proxy import extract, is_resolved
proxy = pickle.load(sys.stdin.buffer)
hashed = hash(proxy)
lazy = not is_resolved(proxy)
right = hashed == hash(extract(proxy)) and {extract(proxy): 1}[proxy] == 1
sys.stdout.buffer.write(pickle.dumps((lazy, right, proxy)))
"""


def cached(target: Any) -> Proxy[Any]:
    return Proxy(SimpleFactory(target), cache_defaults=True, target=target)


def visit(proxy: Proxy[Any], *, seed: int) -> tuple[bool, bool, Proxy[Any]]:
    """Send a proxy to a process with another salt and get it back."""
    environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
    run = subprocess.run(
        [sys.executable, "-c", VISIT],
        input=pickle.dumps(proxy),
        env=environment,
        capture_output=True,
        check=True,
    )
    return pickle.loads(run.stdout)


@pytest.mark.parametrize("target", [7, -1, 1.5, 2j, True, "", b""], ids=repr)
def test_hash_that_is_the_same_everywhere_is_used_everywhere(target: Any) -> None:
    lazy, right, _ = visit(cached(target), seed=1)
    assert lazy
    assert right


@pytest.mark.parametrize("target", ["abc", b"abc", ("a", 1), frozenset({"a"})], ids=repr)
def test_salted_hash_is_not_used_with_another_salt(target: Any) -> None:
    lazy, right, again = visit(cached(target), seed=1)
    assert not lazy
    assert right
    assert not is_resolved(again)
    assert again.__proxy_default_hash__ == hash(again) == hash(target)
    assert type(again.__proxy_default_hash__) is int, "home again"
    assert not is_resolved(again)


def test_hash_by_identity_is_not_used_in_another_process() -> None:
    proxy = cached(object())
    data = pickle.dumps(proxy)
    assert hash(pickle.loads(data)) == hash(proxy)
    child = os.fork()
    if child == 0:
        again = pickle.loads(data)
        os._exit(0 if hash(again) == object.__hash__(again.__proxy_wrapped__) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("duplicate", [copy.copy, lambda p: pickle.loads(pickle.dumps(p))])
def test_hash_stays_a_plain_int_at_home(duplicate: Any) -> None:
    again = duplicate(cached("abc"))
    assert type(again.__proxy_default_hash__) is int
    assert again.__proxy_default_hash__ == hash("abc")
    assert not is_resolved(again)
