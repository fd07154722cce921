"""Keys, gates and repositories: what a publisher does on the workstation, with real keys and real files."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import stat
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("tuf")
pytest.importorskip("cryptography")

from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from edge_embed.commands import main
from edge_embed_bundle.bundle import Bundle
from edge_embed_bundle.errors import DigestError
from edge_embed_bundle.manifest import Manifest
from edge_embed_bundle.updating.releases import FRAME_BYTES, Channel, channel_path
from edge_embed_bundle.values import Blob
from edge_embed_export.publishing.gates import GateError, check_budgets, check_bundle
from edge_embed_export.publishing.repository import Repository, RollOut, kept
from edge_embed_export.publishing.signing import Keys, SigningError, newest_root
from tests import deltas
from tests.making import make_bundle, make_unmeasured_bundle, rows_in_topics, small_source
from tests.repositories import A_DAY, Publisher, now


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    return Publisher.make(tmp_path)


@pytest.fixture(scope="module")
def published(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Publisher:
    """A repository that offers ``bundle``; read it, or copy it."""
    made = Publisher.make(tmp_path_factory.mktemp("published"))
    made.publish(bundle)
    return made


def _root(publisher: Publisher) -> Root:
    return newest_root([publisher.keys]).signed


def _metadata(publisher: Publisher, name: str) -> Metadata[Timestamp]:
    return Metadata[Timestamp].from_bytes((publisher.site / "metadata" / name).read_bytes())


def _id(bundle: Path) -> str:
    with Bundle.open(bundle) as opened:
        return opened.id


def _channel(publisher: Publisher) -> Channel:
    return Repository(publisher.site, Keys([publisher.keys])).channel("stable")


# Keys.


def test_private_keys_are_readable_by_their_owner_alone(publisher: Publisher) -> None:
    keys = list(publisher.keys.glob("*.pem"))
    assert len(keys) == 5
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys} == {0o600}
    assert stat.S_IMODE(publisher.keys.stat().st_mode) == 0o700


def test_the_first_root_asks_for_two_signatures_and_has_them(publisher: Publisher) -> None:
    metadata = newest_root([publisher.keys])
    root = metadata.signed
    assert (root.version, root.roles["root"].threshold, len(root.roles["root"].keyids)) == (1, 2, 2)
    root.verify_delegate("root", metadata.signed_bytes, metadata.signatures)
    assert {role: root.roles[role].threshold for role in ("targets", "snapshot", "timestamp")} == {
        "targets": 1,
        "snapshot": 1,
        "timestamp": 1,
    }


def test_keys_are_never_put_into_a_folder_that_has_something_in_it(publisher: Publisher) -> None:
    with pytest.raises(SigningError, match="never replaced"):
        Keys.create(publisher.keys, root_keys=2, now=now())


@pytest.mark.parametrize("role", ["root", "targets", "snapshot", "timestamp"])
def test_a_rotated_key_no_longer_counts_and_the_chain_of_roots_holds(publisher: Publisher, role: str) -> None:
    before = _root(publisher)
    keys = Keys([publisher.keys])
    keys.replace({role: [before.roles[role].keyids[0]]}, now())
    after = newest_root([publisher.keys])
    assert after.signed.version == 2
    assert before.roles[role].keyids[0] not in after.signed.roles[role].keyids
    assert len(after.signed.roles[role].keyids) == len(before.roles[role].keyids)
    assert after.signed.get_root_verification_result(before, after.signed_bytes, after.signatures)
    # The new keys are on disk: they sign again.
    assert all(key.here for key in Keys([publisher.keys]).listed())


def test_a_root_is_not_changed_by_one_of_its_two_keys(publisher: Publisher) -> None:
    one = next(publisher.keys.glob("root-*.pem"))
    one.unlink()
    keys = Keys([publisher.keys])
    with pytest.raises(SigningError, match="expected 2 root keys of the newest root, found 1"):
        keys.replace(keys.named(next(key.id for key in keys.listed() if key.role == "timestamp")), now())
    assert _root(publisher).version == 1
    assert len(list(publisher.keys.glob("timestamp-*.pem"))) == 1


def test_root_keys_may_lie_in_a_folder_of_their_own(publisher: Publisher, tmp_path: Path) -> None:
    stick = tmp_path / "stick"
    stick.mkdir()
    moved = sorted(publisher.keys.glob("root-*.pem"))[1]
    moved.rename(stick / moved.name)
    keys = Keys([publisher.keys, stick])
    keys.replace(keys.named(next(key.id for key in keys.listed() if key.role == "targets")), now())
    assert _root(publisher).version == 2


def test_of_three_root_keys_a_lost_one_can_be_replaced(tmp_path: Path) -> None:
    publisher = Publisher.make(tmp_path, root_keys=3)
    lost = next(publisher.keys.glob("root-*.pem"))
    lost.unlink()
    keys = Keys([publisher.keys])
    keys.replace(keys.named(next(key.id for key in keys.listed() if not key.here)), now())
    assert all(key.here for key in Keys([publisher.keys]).listed())


def test_a_key_is_revoked_by_the_beginning_of_its_id_and_no_two(publisher: Publisher) -> None:
    keys = Keys([publisher.keys])
    wanted = keys.listed()[2]
    assert keys.named(wanted.id[:12]) == {wanted.role: [wanted.id]}
    with pytest.raises(SigningError, match="one key that counts"):
        keys.named("")
    with pytest.raises(SigningError, match="one key that counts"):
        keys.named("no such id")


def test_what_is_no_key_is_refused_by_name(publisher: Publisher) -> None:
    (publisher.keys / "notes.pem").write_text("not a key")
    with pytest.raises(SigningError, match=r"notes\.pem: expected a private key"):
        Keys([publisher.keys])


# A repository.


def test_a_published_bundle_is_files_by_their_digests_in_a_signed_channel(published: Publisher, bundle: Path) -> None:
    (release,) = _channel(published).releases
    with Bundle.open(bundle) as opened:
        assert release.id == opened.id
        names = {"manifest.json": opened.id} | {name: blob.sha256 for name, blob in opened.manifest.blobs.items()}
    assert {file.name: file.sha256 for file in release.files} == names
    for file in release.files:
        assert (published.site / "blobs" / file.sha256).read_bytes() == (bundle / file.name).read_bytes()
        assert len(file.frames) == -(-file.size_bytes // FRAME_BYTES)
    assert (release.percent, release.boards, release.halted) == (100, (), False)


def test_the_newest_metadata_is_signed_by_the_keys_that_the_root_names(published: Publisher) -> None:
    root = _root(published)
    for role, name in (("timestamp", "timestamp"), ("snapshot", "1.snapshot"), ("targets", "1.targets")):
        metadata = _metadata(published, f"{name}.json")
        root.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", metadata.signed.unrecognized_fields["signed_at"])


def test_a_poll_costs_less_than_500_bytes(published: Publisher) -> None:
    assert (published.site / "metadata" / "timestamp.json").stat().st_size < 480


def test_publishing_again_changes_the_roll_out_and_not_the_fleets_answer(
    published: Publisher, bundle: Path, tmp_path: Path
) -> None:
    publisher = published.copy(tmp_path)
    (first,) = _channel(publisher).releases
    ten = publisher.publish(bundle, RollOut(percent=10, boards=("pi-4",)))
    assert (ten.percent, ten.boards, ten.salt) == (10, ("pi-4",), first.salt)
    halted = publisher.publish(bundle, RollOut(halted=True))
    assert (halted.percent, halted.boards, halted.halted) == (10, ("pi-4",), True)
    assert _channel(publisher).releases == (halted,)
    assert not publisher.publish(bundle, RollOut()).halted


def test_a_newer_release_stands_before_the_older_one(
    published: Publisher, bundle: Path, newer_bundle: Path, tmp_path: Path
) -> None:
    publisher = published.copy(tmp_path)
    publisher.publish(newer_bundle)
    assert [release.version for release in _channel(publisher).releases] == ["1.1.0", "1.0.0"]


def test_a_channel_keeps_what_some_board_may_still_be_sent_to(published: Publisher) -> None:
    (release,) = _channel(published).releases
    some, halted = release._replace(percent=10), release._replace(halted=True)
    assert kept([some, release, halted, some, release, release]) == (some, release, halted, some, release)


def test_who_has_the_online_keys_alone_keeps_a_repository_fresh(published: Publisher, tmp_path: Path) -> None:
    publisher = published.copy(tmp_path)
    for offline in (*publisher.keys.glob("root-*.pem"), *publisher.keys.glob("targets-*.pem")):
        offline.unlink()
    publisher.sign(at=now() + 20 * A_DAY)
    timestamp = _metadata(publisher, "timestamp.json").signed
    assert timestamp.version == 2
    assert timestamp.expires > now() + 26 * A_DAY
    assert (publisher.site / "metadata" / "2.snapshot.json").is_file()
    assert not (publisher.site / "metadata" / "2.targets.json").exists()


def test_without_the_targets_key_nothing_is_published(published: Publisher, newer_bundle: Path, tmp_path: Path) -> None:
    publisher = published.copy(tmp_path)
    next(publisher.keys.glob("targets-*.pem")).unlink()
    before = (publisher.site / "metadata" / "timestamp.json").read_bytes()
    with pytest.raises(SigningError, match="expected the key of targets"):
        publisher.publish(newer_bundle)
    assert (publisher.site / "metadata" / "timestamp.json").read_bytes() == before


def test_after_a_rotation_everything_is_signed_by_the_new_key(published: Publisher, tmp_path: Path) -> None:
    publisher = published.copy(tmp_path)
    old = _root(publisher)
    keys = Keys([publisher.keys])
    keys.replace({"targets": old.roles["targets"].keyids, "snapshot": old.roles["snapshot"].keyids}, now())
    publisher.sign()
    root = _root(publisher)
    assert (publisher.site / "metadata" / "2.root.json").is_file()
    for role, name, kind in (("targets", "2.targets", Targets), ("snapshot", "2.snapshot", Snapshot)):
        metadata = _metadata(publisher, f"{name}.json")
        assert isinstance(metadata.signed, kind)
        root.verify_delegate(role, metadata.signed_bytes, metadata.signatures)


# Deltas.


def test_a_new_release_brings_deltas_from_the_two_before_it(
    published: Publisher, bundle: Path, newer_bundle: Path, tmp_path: Path
) -> None:
    publisher = published.copy(tmp_path)
    newest = make_bundle(tmp_path / "newest", version="1.2.0", source=small_source(seed=2)).path
    releases = [publisher.publish(path) for path in (newer_bundle, newest)]
    assert [[delta.parent for delta in release.deltas] for release in releases] == [
        [_id(bundle)],
        [_id(newer_bundle), _id(bundle)],
    ]
    for delta, old in zip(releases[1].deltas, (newer_bundle, bundle), strict=True):
        file = publisher.site / "blobs" / delta.file.sha256
        assert (file.stat().st_size, file.stat().st_mode & 0o777) == (delta.file.size_bytes, 0o644)
        assert file.stat().st_size < 0.6 * sum(file.size_bytes for file in releases[1].files)
        assert deltas.files(deltas.applied(old, file, tmp_path / f"from {old.name}")) == deltas.files(newest)
    assert _channel(publisher).releases[0] == releases[1]


def test_no_delta_starts_from_a_release_that_was_taken_back(
    published: Publisher, bundle: Path, newer_bundle: Path, tmp_path: Path
) -> None:
    publisher = published.copy(tmp_path)
    publisher.publish(bundle, RollOut(halted=True))
    assert publisher.publish(newer_bundle).deltas == ()


def test_a_delta_that_saves_too_little_is_left_out(publisher: Publisher, tmp_path: Path) -> None:
    old, new = (
        make_unmeasured_bundle(tmp_path / f"v{i}", rows_in_topics(4000, 300, seed=i), version=f"1.{i}.0", graphs=())
        for i in range(2)
    )
    said: list[str] = []
    publisher.publish(old)
    release = publisher.publish(new, tell=said.append)
    assert release.deltas == ()
    assert re.fullmatch(r"delta from 1\.0\.0 .*: 1\.\d MiB where the files have 1\.\d MiB; left out", said[0])
    names = {path.name for path in (publisher.site / "blobs").iterdir()}
    assert names == {file.sha256 for each in _channel(publisher).releases for file in each.files}


def test_a_bundle_that_no_delta_makes_is_published_without(
    published: Publisher, newer_bundle: Path, tmp_path: Path
) -> None:
    publisher = published.copy(tmp_path)
    strange = shutil.copytree(newer_bundle, tmp_path / "strange")
    with Bundle.open(strange) as opened:
        manifest = opened.manifest
    rows = manifest.tables[0].tensors["rows"]
    data = bytearray((strange / rows.blob).read_bytes())
    data[rows.offset_bytes + rows.size_bytes + 1] = 7  # between this section and the next one
    for name in (rows.blob, "manifest.json"):
        (strange / name).chmod(0o644)
    (strange / rows.blob).write_bytes(data)
    blob = Blob(len(data), hashlib.sha256(data).hexdigest())
    said: list[str] = []
    _rewritten(strange, manifest._replace(blobs={**manifest.blobs, rows.blob: blob}))
    assert publisher.publish(strange, tell=said.append).deltas == ()
    assert "expected zeros between its sections" in said[0]


def test_a_bundle_that_boards_came_with_may_be_a_parent(
    published: Publisher, newer_bundle: Path, tmp_path: Path
) -> None:
    publisher = published.copy(tmp_path)
    shipped = make_bundle(tmp_path / "shipped", version="0.9.0", source=small_source(seed=3)).path
    release = publisher.publish(newer_bundle)
    added = publisher.publish(newer_bundle, RollOut(), delta_from=[shipped])
    assert added.deltas[:-1] == release.deltas
    assert added.deltas[-1].parent == _id(shipped)
    # What was offered once stays, whatever is said of the roll-out.
    assert publisher.publish(newer_bundle, RollOut(percent=5)).deltas == added.deltas


def test_a_file_that_rotted_in_the_repository_is_put_there_anew(
    published: Publisher, bundle: Path, tmp_path: Path
) -> None:
    publisher = published.copy(tmp_path)
    file = _channel(publisher).releases[0].files[-1]
    blob = publisher.site / "blobs" / file.sha256
    blob.write_bytes(bytes(file.size_bytes))
    publisher.publish(bundle, RollOut("beta"))
    assert blob.read_bytes() == (bundle / file.name).read_bytes()


def test_a_parent_whose_files_are_not_here_may_be_given(
    published: Publisher, bundle: Path, newer_bundle: Path, tmp_path: Path
) -> None:
    publisher = published.copy(tmp_path)
    (release,) = _channel(publisher).releases
    (publisher.site / "blobs" / release.files[-1].sha256).unlink()
    said: list[str] = []
    assert publisher.copy(tmp_path / "without").publish(newer_bundle, tell=said.append).deltas == ()
    assert "no delta from small 1.0.0" in said[0] and "give --delta-from" in said[0]
    assert publisher.publish(newer_bundle, delta_from=[bundle]).deltas[0].parent == _id(bundle)


def test_a_parent_that_rotted_in_the_repository_is_an_error(
    published: Publisher, newer_bundle: Path, tmp_path: Path
) -> None:
    publisher = published.copy(tmp_path)
    (release,) = _channel(publisher).releases
    blob = publisher.site / "blobs" / release.files[-1].sha256
    blob.write_bytes(bytes(blob.stat().st_size))
    with pytest.raises(DigestError, match=f"{blob}: expected .* of small 1.0.0"):
        publisher.publish(newer_bundle)
    assert _channel(publisher).releases == (release,)


# Gates.


def test_a_damaged_bundle_is_not_published(publisher: Publisher, damageable: Path) -> None:
    data = bytearray((damageable / "golden.bin").read_bytes())
    data[0] ^= 1
    (damageable / "golden.bin").write_bytes(data)
    with pytest.raises(Exception, match=r"golden\.bin: expected sha256"):
        publisher.publish(damageable, check=check_bundle)
    assert not publisher.site.exists()


def _rewritten(bundle: Path, manifest: Manifest) -> Path:
    (bundle / "manifest.json").write_bytes(manifest.to_bytes())
    return bundle


def test_a_bundle_that_asks_no_golden_questions_is_not_published(publisher: Publisher, damageable: Path) -> None:
    with Bundle.open(damageable) as opened:
        manifest = opened.manifest._replace(golden=())
    with pytest.raises(Exception, match="golden"):
        publisher.publish(_rewritten(damageable, manifest), check=check_bundle)


def test_a_bundle_without_budgets_is_not_published(bundle: Path) -> None:
    with Bundle.open(bundle) as opened:
        manifest = opened.manifest
    check_budgets(manifest)
    fewer = {name: budget for name, budget in manifest.budgets.operations.items() if name != "lookup"}
    with pytest.raises(GateError, match="found none for lookup"):
        check_budgets(manifest._replace(budgets=manifest.budgets._replace(operations=fewer)))
    with pytest.raises(GateError, match="found none for memory"):
        check_budgets(manifest._replace(budgets=manifest.budgets._replace(memory_private_bytes=0)))


def test_a_new_space_is_published_with_a_reason_alone(published: Publisher, newer_bundle: Path, tmp_path: Path) -> None:
    publisher = published.copy(tmp_path)
    with pytest.raises(GateError, match="expected the space of the release before for table"):
        publisher.publish(newer_bundle, RollOut())
    assert len(_channel(publisher).releases) == 1
    release = publisher.publish(newer_bundle, RollOut(new_space="trained on another corpus"))
    assert _channel(publisher).releases[0].new_space == release.new_space == "trained on another corpus"


def _program(path: Path, body: str) -> str:
    path.write_text(f"#!{sys.executable}\n{body}")
    path.chmod(0o755)
    return str(path)


def test_a_consumer_of_the_old_vectors_judges_the_new_ones(
    published: Publisher, newer_bundle: Path, tmp_path: Path
) -> None:
    publisher = published.copy(tmp_path)
    judge = """
import sys, edge_embed
old, new = (edge_embed.open(path) for path in sys.argv[1:])
print("found", old.manifest.version, new.manifest.version)
sys.exit(3 if abs(old.lookup("word1") - new.lookup("word1")).max() > .1 else 0)
"""
    roll_out = RollOut(new_space="another seed", frozen_check=_program(tmp_path / "judge", judge))
    with pytest.raises(GateError, match=r"expected exit status 0, found 3: found 1\.0\.0 1\.1\.0"):
        publisher.publish(newer_bundle, roll_out)
    assert len(_channel(publisher).releases) == 1
    lenient = _program(tmp_path / "lenient", "")
    assert publisher.publish(newer_bundle, replace(roll_out, frozen_check=lenient)).version == "1.1.0"


def test_a_frozen_check_without_a_release_before_is_a_mistake(publisher: Publisher, bundle: Path) -> None:
    with pytest.raises(GateError, match="expected a release before"):
        publisher.publish(bundle, RollOut(frozen_check="true"))


# The commands.


def test_the_commands_publish_what_a_board_takes(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys, site = str(tmp_path / "keys"), str(tmp_path / "site")
    assert main(["keys", "create", keys, "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["keys"]
    assert [key["role"] for key in listed] == ["root", "root", "targets", "snapshot", "timestamp"]
    publish = ["publish", str(bundle), "--repository", site, "--keys", keys]
    assert main([*publish, "--percent", "25", "--board", "pi-4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["percent"], found["boards"], found["channel"]) == (25, ["pi-4"], "stable")
    assert main(["keys", "rotate", "timestamp", "--keys", keys, "--repository", site]) == 0
    assert main(["keys", "revoke", listed[2]["id"][:10], "--keys", keys, "--repository", site]) == 0
    assert main(["keys", "sign", "--keys", keys, "--repository", site, "--days", "3"]) == 0
    assert main(["keys", "list", "--keys", keys]) == 0
    capsys.readouterr()
    assert sorted(path.name for path in (Path(site) / "metadata").glob("*.root.json")) == [
        "1.root.json",
        "2.root.json",
        "3.root.json",
    ]
    assert main([*publish, "--percent", "101", "--json"]) == 2
    assert "from 0 to 100" in json.loads(capsys.readouterr().out)["error"]
    assert channel_path("stable") == "channels/stable.json"


@pytest.mark.parametrize(
    ("damaged", "data", "reason"),
    [
        ("site/metadata/timestamp.json", b"x", "Failed to deserialize"),
        ("site/metadata/1.targets.json", b"", "Failed to deserialize"),
        ("site/targets/channels/*.stable.json", b"{}", "length 2 does not match"),
        ("keys/1.root.json", b"[]", "Failed to deserialize"),
    ],
)
def test_a_repository_that_is_damaged_on_the_workstation_is_named_in_one_sentence(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damaged: str, data: bytes, reason: str
) -> None:
    publish = ["publish", str(bundle), "--repository", str(tmp_path / "site"), "--keys", str(tmp_path / "keys")]
    assert main(["keys", "create", str(tmp_path / "keys")]) == 0
    assert main(publish) == 0
    if damaged.startswith("keys"):
        shutil.rmtree(tmp_path / "site")
    (place,) = tmp_path.glob(damaged)
    place.write_bytes(data)
    capsys.readouterr()
    assert main(publish) == 2
    said = capsys.readouterr().err
    assert str(place) in said and reason in said and said.count("\n") == 1


def test_a_root_that_is_something_else_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = tmp_path / "keys"
    assert main(["keys", "create", str(keys)]) == 0
    assert main(["keys", "sign", "--keys", str(keys), "--repository", str(tmp_path / "site")]) == 0
    shutil.copy(tmp_path / "site" / "metadata" / "1.targets.json", keys / "2.root.json")
    assert main(["keys", "list", "--keys", str(keys)]) == 2
    assert "expected metadata of root, found targets" in capsys.readouterr().err


def test_a_revocation_without_the_online_keys_says_what_is_done_and_what_is_left(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    online, offline, site = tmp_path / "online", tmp_path / "offline", str(tmp_path / "site")
    assert main(["keys", "create", str(online)]) == 0
    assert main(["publish", str(bundle), "--repository", site, "--keys", str(online)]) == 0
    offline.mkdir()
    for path in (*online.glob("root-*.pem"), online / "1.root.json"):
        shutil.copy(path, offline)
    for path in online.glob("root-*.pem"):
        path.unlink()
    (targets,) = online.glob("targets-*.pem")
    revoked = targets.stem.removeprefix("targets-")
    assert main(["keys", "revoke", revoked, "--keys", str(offline), "--repository", site]) == 2
    said = capsys.readouterr().err
    assert f"the new root and its key lie in {offline} and count, and {site} is not signed by them yet" in said
    assert (offline / "2.root.json").is_file()
    assert main(["keys", "sign", "--keys", str(offline), "--keys", str(online), "--repository", site]) == 0
    assert (Path(site) / "metadata" / "2.root.json").is_file()


def test_a_bundle_whose_golden_answers_are_wrong_is_not_published(publisher: Publisher, damageable: Path) -> None:
    data = bytearray((damageable / "golden.bin").read_bytes())
    data[3] ^= 0x40
    (damageable / "golden.bin").write_bytes(data)
    with Bundle.open(damageable) as opened:
        manifest = opened.manifest
    blob = manifest.blobs["golden.bin"]._replace(sha256=hashlib.sha256(data).hexdigest())
    with pytest.raises(GateError, match=r"expected right golden answers, found: .*NOT within"):
        publisher.publish(
            _rewritten(damageable, manifest._replace(blobs={**manifest.blobs, "golden.bin": blob})), check=check_bundle
        )
    assert not publisher.site.exists()
