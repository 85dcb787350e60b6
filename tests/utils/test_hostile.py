"""Files and names made to break a reader: nothing in them is run, nothing they claim is allocated.

Only UserError comes out, and its message is one short line.

The search by chance is tests/fuzz.py; what stands here are the attacks that people know.
"""

import io
import json
import os
import pickle
import struct
import tracemalloc
import zipfile

import pytest
import torch
from refusals import refused
from scripts import TINY

import models.weight_archives
import training.checkpoint
from data.faces import index_identity_folders
from data.filenames import parse_age
from data.pairs import read_pair_list
from data.transforms import decode_face
from meta import FILENAME_PATTERNS, UserError
from models.iefp import IEFP
from models.weight_archives import MAX_DESCRIPTION
from models.weights import read_weight_file
from training.checkpoint import checksum_path, load_checkpoint, save_checkpoint
from utils.cli import MAX_ARGUMENT_CHARACTERS, expand_argument_files, printable, run_script
from utils.files import MAX_LINE_LENGTH, sha256

ESCAPE = "\x1b[2J\x1b[31mred\r\nline two\u202etxt"  # clears the screen, turns to red, breaks the line, turns the text


@pytest.fixture
def faces(tmp_path):
    folder = tmp_path / "faces"
    folder.mkdir()
    for name in ("a.jpg", "b.jpg"):
        (folder / name).touch()
    return folder


def write(folder, content, name="file"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("name", ["../secret.jpg", "sub/../../secret.jpg", "/etc/passwd", "//etc/passwd", "..", "./..",
                                  "a.jpg\0", "\0", "../" * 2000], ids=range(9))  # fmt: skip
def test_pair_lists_lead_nowhere_outside_their_folder(tmp_path, faces, name):
    (tmp_path / "secret.jpg").touch()
    for line in (f"a.jpg {name} 1\n", f"{name} a.jpg 1\n"):
        message = refused(read_pair_list, write(tmp_path, line), faces, True, match="line 1, .*outside the folder")
        assert message.isprintable()


@pytest.mark.skipif(os.sep != "/", reason="a backslash parts folders here")
def test_a_backslash_is_a_letter_of_a_name(tmp_path, faces):
    message = refused(read_pair_list, write(tmp_path, "a.jpg ..\\..\\secret.jpg 1\n"), faces, match="lacks 1 of the 2")
    assert r"'..\\..\\secret.jpg'" in message
    (faces / "..\\b.jpg").touch()
    assert read_pair_list(write(tmp_path, "a.jpg ..\\b.jpg 1\n"), faces).images.name(1) == "..\\b.jpg"


@pytest.mark.parametrize("line", ["x" * 30_000_000, "a.jpg " * 5_000_000, "a.jpg b.jpg 1" + " " * 2**24], ids=range(3))
def test_a_line_without_end_is_refused_by_its_number_before_it_is_read(tmp_path, faces, line):
    path = write(tmp_path, f"a.jpg b.jpg 1\n{line}\n")
    tracemalloc.start()
    message = refused(read_pair_list, path, faces, match=f"line 2, has more than {MAX_LINE_LENGTH:,} characters")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert message.isprintable() and peak < 2_000_000


def test_the_longest_line_that_can_be_meant_is_read(tmp_path, faces):
    line = "/".join(["."] * 2000) + "/a.jpg " + "./" * 2000 + "b.jpg 1\n"
    assert len(read_pair_list(write(tmp_path, line), faces)) == 1
    exact = "a.jpg b.jpg 1" + " " * (MAX_LINE_LENGTH - 14) + "\n"
    assert len(exact) == MAX_LINE_LENGTH
    assert len(read_pair_list(write(tmp_path, exact * 2), faces)) == 2


def test_text_of_other_encodings_is_refused_and_windows_text_is_read(tmp_path, faces):
    good = "a.jpg b.jpg 1\r\nb.jpg a.jpg 0\r\n"
    assert len(read_pair_list(write(tmp_path, b"\xef\xbb\xbf" + good.encode()), faces)) == 2
    for content in (good.encode("utf-16"), b"\xff\xfe\xfd " * 3, b"\x80 \x81 1\n", b"PK\x03\x04 \x00 1\n"):
        assert refused(read_pair_list, write(tmp_path, content), faces).isprintable()


def test_a_list_that_is_no_file_is_refused_without_waiting(tmp_path, faces):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (faces, "/dev/zero", "/dev/null", tmp_path / "pipe"):
        refused(read_pair_list, path, faces, match="cannot be read, it is a folder or a device")
    refused(read_pair_list, tmp_path / "loop", faces, match="Too many levels of symbolic links")
    refused(read_pair_list, "a\0b", faces, match="null byte")
    refused(read_pair_list, "x" * 300, faces, match="File name too long")
    for content in ("", "\n \n\t\r\n", "\ufeff"):
        refused(read_pair_list, write(tmp_path, content), faces, match="holds no pairs")


def test_a_file_name_cannot_steer_the_terminal(tmp_path):
    (tmp_path / "person").mkdir()
    (tmp_path / "person" / f"{ESCAPE}.jpg").touch()
    message = refused(index_identity_folders, tmp_path, FILENAME_PATTERNS["ms1mv3"])
    assert message.isprintable() and r"\x1b[2J" in message


READERS = {"weights": read_weight_file, "checkpoint": load_checkpoint, "picture": decode_face,
           "arguments": lambda path: expand_argument_files([f"@{path}"]),
           "pairs": lambda path: read_pair_list(path, path),
           "folder": lambda path: index_identity_folders(path, None)}  # fmt: skip


@pytest.mark.parametrize("what", READERS)
def test_a_script_reports_any_name_in_one_printable_line(tmp_path, capsys, what):
    with pytest.raises(SystemExit) as ended:
        run_script(lambda: READERS[what](tmp_path / ESCAPE))
    assert ended.value.code == 2
    reply = capsys.readouterr().err
    assert reply.endswith("\n") and reply[:-1].isprintable()
    assert r"\x1b[2J\x1b[31mred\r\nline two\u202etxt" in reply.replace("\\\\", "\\")
    assert printable("Zo\u00eb \u5f20 'a\\b' \U0001f600") == "Zo\u00eb \u5f20 'a\\b' \U0001f600"


@pytest.mark.parametrize("name", ["x_age_" + "9" * 5000 + ".jpg", "x_age_" + "0" * 5000 + "7.jpg", "_" * 100_000])
def test_an_age_of_thousands_of_digits_is_none(name):
    with pytest.raises(UserError, match="has no age in its name"):
        parse_age(name, FILENAME_PATTERNS["ms1mv3"])


def test_argument_files_without_end_or_with_nul_bytes_are_refused(tmp_path):
    for content, reason in (
        ("x" * (MAX_ARGUMENT_CHARACTERS + 1), "more than 100,000 characters"),
        ("--note a\0b", "NUL bytes"),
        (b"--note \xff", "codec can't decode"),
        ("--note 'open", "No closing quotation"),
    ):
        refused(expand_argument_files, [f"@{write(tmp_path, content)}"], match=f"can't be read.*{reason}")
    refused(expand_argument_files, ["@/dev/zero"], match="more than 100,000 characters")
    refused(expand_argument_files, ["@a\0b"], match="null byte")
    refused(expand_argument_files, [f"@{tmp_path}"], match="can't be read")


def test_argument_files_of_windows_editors_are_read(tmp_path):
    path = write(tmp_path, b"\xef\xbb\xbf--count 5\r\n# five\r\n--note 'a b'\r\n")
    assert expand_argument_files([f"@{path}"]) == ["--count", "5", "--note", "a b"]


class Attack:
    """Unpickled carelessly, it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def torch_bytes(content, **how):
    buffer = io.BytesIO()
    torch.save(content, buffer, **how)
    return buffer.getvalue()


def checkpoint_of(folder, content):
    """The file and the right checksum beside it: the checksum is no shield against who wrote both."""
    path = write(folder, content, "step_00000001.pth")
    checksum_path(path).write_text(f"{sha256(path)}  {path.name}\n")
    return path


def both_refuse(folder, content):
    """What the two readers say."""
    return (
        refused(read_weight_file, write(folder, content, "weights.pth")),
        refused(load_checkpoint, checkpoint_of(folder, content)),
    )


@pytest.mark.parametrize("kind", ["zip", "legacy", "bare pickle", "inside a table", "in the sizes"])
def test_code_in_a_file_is_not_run(tmp_path, kind):
    trace = tmp_path / "it ran"
    attack = Attack(trace)
    content = {
        "zip": lambda: torch_bytes(attack),
        "legacy": lambda: torch_bytes(attack, _use_new_zipfile_serialization=False),
        "bare pickle": lambda: pickle.dumps(attack),
        "inside a table": lambda: torch_bytes({"format": 2, "model": {"a": torch.zeros(1), "b": attack}}),
        "in the sizes": lambda: torch_bytes({"layer1.0.bn1.weight": [torch.zeros(1), attack]}),
    }[kind]()
    for message in both_refuse(tmp_path, content):
        assert message.isprintable()
    assert not trace.exists()
    if kind != "legacy":
        torch.load(io.BytesIO(content), weights_only=False) if kind != "bare pickle" else pickle.loads(content)
        assert trace.exists()  # the attack works where somebody is careless


def rewritten(content, change, compression=zipfile.ZIP_STORED):
    """The archive with `change(name, bytes)` of each file, checksums right."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return buffer.getvalue()


def test_an_archive_that_unpacks_to_a_thousandfold_or_is_compressed_is_refused_unread(tmp_path):
    bomb = rewritten(torch_bytes({"a": torch.zeros(5_000_000)}), lambda _, part: part, zipfile.ZIP_DEFLATED)
    assert len(bomb) < 100_000
    assert "it unpacks to 20,00" in refused(read_weight_file, write(tmp_path, bomb, "weights.pth"))
    noise = torch_bytes({"a": torch.randint(0, 256, (10_000,), dtype=torch.uint8)})  # no smaller when compressed
    compressed = rewritten(noise, lambda _, part: part, zipfile.ZIP_DEFLATED)
    refused(read_weight_file, write(tmp_path, compressed, "weights.pth"), match="it is compressed")


def test_files_of_one_archive_that_share_their_bytes_are_refused(tmp_path):
    """A thousand names for the same bytes need no compression to become a thousand times as many."""
    archive = bytearray(torch_bytes({"a": torch.zeros(50_000)}))
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        big = max(opened.infolist(), key=lambda entry: entry.file_size)
        start, count = opened.start_dir, len(opened.infolist())
    directory = bytearray(archive[start : archive.rindex(b"PK\x05\x06")])
    entry = directory[directory.index(big.filename.encode()) - 46 :]
    entry = entry[: 46 + sum(struct.unpack_from("<HHH", entry, 28))]
    directory = directory.split(b"PK\x06\x06")[0] + entry * 500
    end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, count + 500, count + 500, len(directory), start, 0)
    content = bytes(archive[:start] + directory + end)
    with zipfile.ZipFile(io.BytesIO(content)) as opened:
        assert len(opened.infolist()) >= 500
    assert "it unpacks to" in refused(read_weight_file, write(tmp_path, content, "weights.pth"))


@pytest.fixture(params=["as torch reads", "as for older torch"])
def way(request, monkeypatch):
    """Both ways to read an archive, whatever torch this is; the second is what older ones are given."""
    if request.param == "as for older torch":
        for module in (models.weight_archives, training.checkpoint):
            monkeypatch.setattr(module, "BELIEVES_LENGTHS", True)


def test_weights_and_checkpoints_are_read_either_way(tmp_path, way):
    content = {"format": 2, "model": IEFP(TINY, 1, 3).state_dict()}
    checkpoint = checkpoint_of(tmp_path, torch_bytes(content))
    for found in (read_weight_file(checkpoint).tensors, load_checkpoint(checkpoint)["model"]):
        assert found.keys() == content["model"].keys()
        assert all(torch.equal(found[key], value) for key, value in content["model"].items())


@pytest.mark.parametrize("claim", [2**20, 2**31 - 1, -1])
def test_a_tensor_that_claims_more_than_the_file_holds_is_refused(tmp_path, way, claim):
    def change(name, part):
        place = part.index(b"cpu") if b"cpu" in part else len(part)
        number = b"J" + struct.pack("<i", claim)
        return part[:place] + part[place:].replace(b"K\x04", number)  # the storage's length, then the tensor's

    content = rewritten(torch_bytes({"format": 2, "layer1.0.bn1.weight": torch.zeros(4)}), change)
    legacy = torch_bytes({"layer1.0.bn1.weight": torch.zeros(4)}, _use_new_zipfile_serialization=False)
    assert change("", legacy) != legacy
    for message in (*both_refuse(tmp_path, content), *both_refuse(tmp_path, change("", legacy))):
        assert message.isprintable()


ODD_TENSORS = {
    "sparse": lambda: torch.zeros(2, 2).to_sparse(),
    "no values": lambda: torch.zeros(2, device="meta"),
    "complex": lambda: torch.zeros(2, dtype=torch.complex64),
    "quantized": lambda: torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8),
}


@pytest.mark.parametrize("kind", ODD_TENSORS)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_no_parameter_can_hold_are_refused(tmp_path, kind):
    content = {"layer1.0.bn1.weight": ODD_TENSORS[kind](), "conv1.weight": torch.zeros(1)}
    message = refused(read_weight_file, write(tmp_path, torch_bytes(content), "weights.pth"))
    assert "no table of named tensors but layer1.0.bn1.weight" in message or "can't be read" in message


@pytest.mark.parametrize("content", [
    {"format": torch.zeros(3)}, {"format": "2"}, {"format": [2]}, [], torch.zeros(2), {1: torch.zeros(1)},
    {ESCAPE: torch.zeros(1)}, {ESCAPE * 100_000: torch.zeros(1), "x" * 1_000_000: 3},
    {"layer1.0.bn1.weight": torch.zeros(1), "layer2." + "9" * 6000: torch.zeros(1)},
    {"model": {}, "state_dict": {"backbone_id." + ESCAPE: torch.zeros(1)}},
], ids=range(10))  # fmt: skip
def test_tables_of_other_things_are_refused_in_one_short_line(tmp_path, content):
    for message in both_refuse(tmp_path, torch_bytes(content)):
        assert message.isprintable()


def tiny_weights(folder, more=(), **beside):
    """A file that reads as iresnet18_quarter, on tensors of a few numbers."""
    tensors = {f"layer{n}.{block}.bn1.weight": torch.zeros(1) for n in (1, 2, 3, 4) for block in (0, 1)}
    tensors |= {"conv1.weight": torch.zeros(16, 1), "spu.seq.2.weight": torch.zeros(2, 2)} | dict(more)
    tensors = {f"backbone_id.{key}": value for key, value in tensors.items()}
    return write(folder, torch_bytes({"model": tensors, **beside} if beside else tensors), "tiny.pth")


def test_keys_with_endless_numbers_are_no_layers(tmp_path):
    more = {f"spu.seq.{number}.weight": torch.zeros(2, 2) for number in ("9" * 5000, "\u0663", "-1", "")}
    assert read_weight_file(tiny_weights(tmp_path, more)).identity_branch.purification == 1


@pytest.mark.parametrize("reply", ["9" * 5000, "-" * 5000, [1], {}, 1.0, True, 10**40, "\x1b[31m", torch.ones(2)])
def test_a_checkpoint_that_names_no_unit_is_refused(tmp_path, reply):
    path = tiny_weights(tmp_path, branches={"identity_branch": {"purification": reply}})
    assert "is described as having purification" in refused(read_weight_file, path)


UNIT = b'{"identity_branch": {"purification": '


@pytest.mark.parametrize("text", [
    b"", b"\xff\xfe", b"{", b"[" * 50_000, b'{"identity_branch":' * 5_000, UNIT + b"[" * 900 + b"]" * 900 + b"}}",
    UNIT + b"9" * 5000 + b"}}", UNIT + b'"' + b"9" * 5000 + b'"}}', UNIT + b"NaN}}", UNIT + b'"\\u001b[31m"}}',
    b" " * (MAX_DESCRIPTION + 1),
], ids=range(11))  # fmt: skip
def test_a_hostile_description_beside_the_weights_is_refused(tmp_path, text):
    path = tiny_weights(tmp_path)
    write(tmp_path, text, "tiny.json")
    message = refused(read_weight_file, path, match="restore or remove")
    assert message.isprintable()


@pytest.mark.parametrize("reply", [[], 3, {"identity_branch": []}, {"identity_branch": {}}, {"other": None}, None])
def test_a_description_of_something_else_says_nothing(tmp_path, reply):
    path = tiny_weights(tmp_path)
    write(tmp_path, json.dumps(reply), "tiny.json")
    assert read_weight_file(path).identity_branch.purification == 1


def test_weight_files_that_are_no_files_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    words = {tmp_path: "is a folder, no weight file", "/dev/zero": "is a device or a pipe",
             tmp_path / "pipe": "is a device or a pipe"}  # fmt: skip
    gone = (tmp_path / "loop", "a\0b", "x" * 5000, tmp_path / ("x" * 300))
    for path, says in (words | dict.fromkeys(gone, "does not exist")).items():
        with pytest.raises(UserError, match=says):
            read_weight_file(path)


def test_no_memory_and_control_c_are_no_damage(tmp_path, monkeypatch):
    weights = tiny_weights(tmp_path)
    checkpoint = save_checkpoint(tmp_path / "checkpoints", 1, {}, keep=1)
    for kind in (MemoryError, KeyboardInterrupt):

        def stop(*_, kind=kind, **__):
            raise kind

        monkeypatch.setattr(torch, "load", stop)
        for read, path in ((read_weight_file, weights), (load_checkpoint, checkpoint)):
            with pytest.raises(kind):
                read(path)
