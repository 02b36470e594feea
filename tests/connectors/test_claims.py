"""Claims in directories and dictionaries, beyond the contract."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle

import pytest

from proxystore.connectors import file, local
from proxystore.connectors.exceptions import NoFileLocksError
from proxystore.connectors.file import FileConnector
from proxystore.connectors.local import LocalConnector
from proxystore.connectors.multi import MultiConnector, Policy
from proxystore.testing import check_connector


@pytest.fixture
def files(tmp_path):
    with FileConnector(tmp_path / "objects") as connector:
        yield connector


def names(connector):
    return sorted(os.listdir(connector.store_dir))


@pytest.mark.parametrize(
    "content", [b"", b"1e99", b"1e99 cut short", b"soon me\n", b"\xff\n", b"1 long ago\n"]
)
def test_what_was_not_written_to_its_end_is_no_claim(files, content):
    key = files.put(b"x")
    with open(f"{files.store_dir}/.{key.filename}.claim", "wb") as claim:
        claim.write(content)
    assert files.claim(key, "me", 60) == "me"
    assert files.claim(key, "you", 60) == "me"


def test_a_claim_on_what_is_not_there_leaves_no_file(files):
    key = files.new_key()
    assert files.claim(key, "me", 60) == "me"
    files.release(key, "me")
    assert names(files) == []


def test_a_claim_whose_object_was_evicted_unawares_goes_with_the_next(files, monkeypatch):
    key = files.put(b"x")
    files.claim(key, "me", 60)
    with monkeypatch.context() as patch:
        patch.setattr(file, "_claimed", set())  # as in a process that knows of no claims
        files.evict(key)
    assert names(files) == [f".{key.filename}.claim"]
    assert files.claim(key, "you", 60) == "you"
    assert names(files) == []


def test_a_process_that_was_told_removes_the_claims_of_others(files):
    key = files.put(b"x")
    files.expect_claims()
    child = multiprocessing.get_context("fork").Process(target=files.claim, args=(key, "it", 60))
    child.start()
    child.join(60)
    assert files.claim(key, "me", 60) == "it"
    files.evict(key)
    assert names(files) == []


def test_a_file_that_loses_its_name_before_it_is_locked_is_no_claim(files, monkeypatch):
    key = files.put(b"x")
    files.claim(key, "me", 60)
    flock = file.fcntl.flock

    def lock_late(fd, operation):
        monkeypatch.undo()
        os.unlink(f"{files.store_dir}/.{key.filename}.claim")
        assert files.claim(key, "you", 60) == "you"
        flock(fd, operation)

    monkeypatch.setattr(file.fcntl, "flock", lock_late)
    assert files.claim(key, "late", 60) == "you"


def test_clearing_removes_claims(tmp_path):
    connector = FileConnector(tmp_path / "objects")
    connector.claim(connector.put(b"x"), "me", 60)
    connector.close(clear=True)
    assert not os.path.exists(connector.store_dir)
    assert connector.claim(connector.new_key(), "me", 60) == "me", "there is no directory"


def test_a_file_system_without_locks(files, monkeypatch):
    key = files.put(b"x")

    def flock(fd, operation):
        raise OSError(errno.ENOLCK, "no locks")

    with monkeypatch.context() as patch:
        patch.setattr(file.fcntl, "flock", flock)
        with pytest.raises(NoFileLocksError, match="does not lock files") as caught:
            files.claim(key, "me", 60)
    assert names(files) == [key.filename]
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again)) == (NoFileLocksError, str(caught.value))


def test_connectors_with_one_dictionary_share_claims():
    shared = {}
    first, second, alone = LocalConnector(shared), LocalConnector(shared), LocalConnector()
    key = first.put(b"x")
    alone.set(key, b"x")
    assert first.claim(key, "me", 60) == "me"
    assert second.claim(key, "you", 60) == "me"
    assert alone.claim(key, "you", 60) == "you"
    for connector in (first, alone):
        connector.evict(key)
    assert not any(claimed == key for _, claimed in local._claims)


def test_claims_of_dictionaries_that_are_gone_do_not_pile_up():
    for _ in range(1000):
        connector = LocalConnector()
        connector.claim(connector.put(b"x"), "me", 1e-9)
    assert len(local._claims) <= 2 * local._FEWEST_CLAIMS
    local._claims.clear()


class Plain:
    """A connector without claims."""

    evict = get = exists = lambda self, key: None


def test_a_multi_connector_with_a_member_that_cannot_claim(tmp_path):
    members = {"plain": (Plain(), Policy()), "files": (FileConnector(tmp_path), Policy())}
    connector = MultiConnector(members)
    with pytest.raises(NotImplementedError, match="Plain"):
        connector.expect_claims()
    key = ("plain", 1)
    with pytest.raises(NotImplementedError, match="Plain"):
        connector.claim(key, "me", 60)
    connector.release(key, "me")


@pytest.mark.parametrize("make", [lambda path: LocalConnector(), FileConnector])
def test_the_contract_leaves_nothing(tmp_path, make):
    before = dict(local._claims)
    with make(tmp_path / "objects") as connector:
        check_connector(connector)
        assert not list(connector.keys())
    assert local._claims == before
