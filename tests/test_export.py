"""What export.py writes computes what the trained model computes and says how to use it; mistakes end in a sentence."""

import json
import struct
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from refusals import refused
from safetensors.torch import load_file, save
from scripts import SLIM, load_script
from torch import nn

from data.faces import index_identity_folders
from data.transforms import to_network_input
from evaluation.embeddings.extraction import both_views
from evaluation.embeddings.networks import open_network
from evaluation.export_check import MIN_MEAN_COSINE
from evaluation.protocols import join_views, leave_one_out
from meta import BENCHMARKS, TRAINING_SETS, UserError
from models.export import Embedder, ScaleAndShift, example_images, fold_batchnorm
from models.export_files import as_texts, from_texts
from models.iefp import IEFP
from models.iresnet import Block
from models.weights import (
    age_file_tensors,
    describe_branches,
    iefp_file_tensors,
    load_age_branch,
    load_for_ages,
    load_for_embedding,
    load_what_fits,
    read_weight_file,
)
from utils.cli import printable
from utils.distributed import DistInfo

BATCHES = (1, 2, 5, 7)


def lively(purification=1, seed=0) -> IEFP:
    """A model whose BatchNorm layers do something: untrained ones are nearly the identity."""
    torch.manual_seed(seed)
    model = IEFP(SLIM, purification, None)
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.weight.data.uniform_(0.5, 1.5)
            layer.bias.data.normal_(0, 0.1)
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 2)
    return model.eval()


@pytest.fixture(scope="module")
def lively_weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("lively") / "iefp.pth"
    torch.save(iefp_file_tensors(lively()), path)
    return path


@pytest.fixture(scope="module")
def model(lively_weights):
    return load_for_embedding(lively_weights)[0]


@pytest.fixture
def calibration(tiny_faces):
    return tiny_faces / TRAINING_SETS["ms1mv3"].folder


@torch.inference_mode()
def plainly(model, images, num_views=2):
    """As test.py does it: the embeddings, and the age probabilities."""
    both = both_views(images, to_network_input)
    views = model.identity_features(both).reshape(2, len(images), -1)
    ages = model.age_logits(model.age_features(both)).softmax(1).reshape(2, len(images), -1)
    if num_views == 1:
        return nn.functional.normalize(views[0]).numpy(), ages[0].numpy()
    return join_views(views[0].numpy(), views[1].numpy(), "concatenate"), ages.mean(0).numpy()


def onnx_session(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def in_one_sentence(outcome, *words):
    assert outcome.status == 2, outcome
    lines = [line for line in outcome.err.splitlines() if line.startswith("export.py: ")]
    assert len(lines) == 1 and len(lines[0]) < 1000 and "Traceback" not in outcome.err, outcome.err
    for word in words:
        assert word in lines[0], lines[0]


@pytest.mark.parametrize("purification", [0, 2, "x_plus_relu_linear_bn", "linear_relu_bn"])
def test_folding_batchnorm_changes_nothing_but_the_last_digits(purification):
    model = lively(purification).double()
    images = example_images(3, torch.uint8)
    plain, folded = Embedder(model, 2, True), Embedder(model, 2, True).folded()
    for a, b in zip(plain(images), folded(images), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
        assert a.dtype == torch.float64


def test_a_scale_and_shift_is_left_before_padded_convolutions_and_relu_alone():
    encoder = lively(2).backbone_id
    fold_batchnorm(encoder)
    assert not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in encoder.modules())
    left = {name for name, layer in encoder.named_modules() if isinstance(layer, ScaleAndShift)}
    blocks = {f"{name}.bn1" for name, layer in encoder.named_modules() if isinstance(layer, Block)}
    assert left == blocks | {"spu.seq.0"}


@pytest.mark.parametrize("num_views", [1, 2])
def test_an_embedder_gives_what_test_py_compares(model, num_views):
    images = example_images(5, torch.uint8)
    for found, wanted in zip(Embedder(model, num_views, True)(images), plainly(model, images, num_views), strict=True):
        np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=1e-5)
    assert torch.equal(Embedder(model, num_views)(images.float()), Embedder(model, num_views)(images))


def test_an_onnx_file_gives_what_pytorch_gives(tmp_path, run_main, lively_weights, model):
    path = tmp_path / "iefp.onnx"
    flags = ("--views", "two", "--input", "float32", "--with-age")
    outcome = run_main("export", "--weights", lively_weights, "-o", path, *flags)
    assert outcome.status == 0 and "largest difference to PyTorch" in outcome.out, outcome.err
    session = onnx_session(path)
    for num_images in BATCHES:
        images = example_images(num_images, torch.uint8)
        found = session.run(None, {"images": images.numpy().astype("float32")})
        wanted = plainly(model, images)
        assert [array.shape for array in found] == [array.shape for array in wanted]
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)
    outcome = run_main("export", "--weights", lively_weights, "--check", path)
    assert outcome.status == 0, outcome.err
    network = open_network(path, DistInfo(0, 1, torch.device("cpu")), None)  # as test.py takes it
    views = network.model.identity_features(both_views(images, to_network_input)).numpy().reshape(2, len(images), -1)
    np.testing.assert_allclose(views[0], wanted[0], rtol=0, atol=1e-5)
    joined = join_views(*views, "concatenate")
    np.testing.assert_allclose(joined @ joined.T, wanted[0] @ wanted[0].T, rtol=0, atol=1e-5)
    refused(open_network, path, network.process, "bgr", match="says itself how pictures go in: leave --onnx-input out")
    assert "the metadata of" in network.remarks[0] and network.model.output == "embeddings"

    metadata = from_texts({entry.key: entry.value for entry in onnx.load(path).metadata_props})
    assert metadata["input"] == {
        "shape": ["batch", 3, 112, 112], "colours": "RGB", "range": [0, 255], "mean": 127.5, "scale": 127.5,
        "name": "images", "dtype": "float32", "normalised_inside": True,
    }  # fmt: skip
    sizes = {"embeddings": ["batch", 1024], "age_probabilities": ["batch", 8]}
    assert metadata["output"] == sizes and metadata["embedding_size"] == 1024
    assert (metadata["views"], metadata["join"]) == (2, "concatenate")
    assert metadata["alignment"]["points"][2] == [56.0252, 71.7366] and "nose" in metadata["alignment"]["order"]
    assert (metadata["backbone"], metadata["purification"], metadata["opset"]) == (SLIM, 1, 18)
    assert set(metadata["software"]) == {"torch", "onnx", "onnxscript", "onnxruntime"}
    assert [output.name for output in session.get_outputs()] == list(sizes)
    beside = json.loads((tmp_path / "iefp.onnx.json").read_text())
    assert metadata.items() <= beside.items() and beside["largest_difference"] < 1e-4
    assert beside["bytes"] == path.stat().st_size
    assert sorted(file.name for file in tmp_path.iterdir()) == ["iefp.onnx", "iefp.onnx.json"]


def test_a_file_that_gives_other_numbers_gets_no_name(tmp_path, run_main, lively_weights, monkeypatch):
    script = load_script("export")
    right = script.write_safetensors

    def wrong(weights, *others):
        weights.tensors["backbone_id.features.bias"][7] += 0.01
        right(weights, *others)

    monkeypatch.setattr(script, "write_safetensors", wrong)
    path = tmp_path / "iefp.safetensors"
    path.write_text("the one before")
    outcome = run_main("export", "--weights", lively_weights, "-o", path)
    in_one_sentence(outcome, "gives other numbers than")
    assert path.read_text() == "the one before"
    assert [file.name for file in tmp_path.iterdir()] == ["iefp.safetensors"]


@pytest.mark.parametrize("precision, views, least, share", [("fp16", 1, 0.9999, 0.52), ("int8", 2, 0.98, 0.29)])
def test_what_a_shorter_precision_loses_is_measured(
    tmp_path, run_main, lively_weights, model, tiny_faces, calibration, precision, views, least, share, monkeypatch
):
    path = tmp_path / "short.onnx"
    pictures = ("--calibration-pictures", calibration, "--calibration-count", 12, "--workers", 0)
    outcome = run_main(
        "export", "--weights", lively_weights, "-o", path, "--precision", precision, *pictures, "--views",
        {1: "one", 2: "two"}[views], "--face-dataset", tiny_faces, "--measure-on", "fgnet",
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    assert path.stat().st_size < share * sum(4 * value.numel() for value in model.backbone_id.parameters())
    metrics = json.loads((tmp_path / "short.onnx.json").read_text())
    cosines = metrics["cosines"]
    assert cosines["num_pictures"] == 12 and least < cosines["least"] <= cosines["mean"] < 1
    title = "FG-NET leave-one-out rank-1"
    figures = metrics["measured"][title]
    assert f"{title} %: {figures['before_percent']:.2f} before" in outcome.out

    # The file's own figure, without our helpers: pictures decoded here, embedded by onnxruntime.
    faces = index_identity_folders(tiny_faces / BENCHMARKS["fgnet"].folders[0], None)
    images = torch.stack([faces.decode(i) for i in range(len(faces))])
    found = onnx_session(path).run(None, {"images": images.numpy()})[0]
    wanted = plainly(model, images, views)[0]
    assert 0 < np.abs(found - wanted).max() < 0.1
    assert figures["before_percent"] == leave_one_out(wanted, faces.identities)["rank1_percent"]
    assert figures["after_percent"] == leave_one_out(found, faces.identities)["rank1_percent"]
    assert figures["cosines"]["num_pictures"] == len(faces)
    assert figures["cosines"]["mean"] == pytest.approx((found * wanted).sum(1).mean(), abs=1e-4)

    check = ("export", "--weights", lively_weights, "--check", path)
    assert run_main(*check, *pictures).status == 0
    if precision == "int8":
        in_one_sentence(run_main(*check), "give --calibration-pictures")
    monkeypatch.setitem(MIN_MEAN_COSINE, precision, 1.0)
    in_one_sentence(run_main(*check, *pictures), "loses too much", "calibrate on aligned faces")


def test_a_program_gives_what_pytorch_gives_after_it_was_loaded(tmp_path, run_main, lively_weights, model):
    path = tmp_path / "iefp.pt2"
    outcome = run_main("export", "--weights", lively_weights, "-o", path, "--views", "two", "--with-age")
    assert outcome.status == 0, outcome.err
    files = {"iefp.json": ""}
    program = torch.export.load(path, extra_files=files).module()  # our own file: this unpickles
    for num_images in BATCHES:
        images = example_images(num_images, torch.uint8)
        for found, wanted in zip(program(images), plainly(model, images), strict=True):
            np.testing.assert_allclose(found.detach().numpy(), wanted, rtol=0, atol=1e-5)
    metadata = json.loads(files["iefp.json"])
    assert metadata["views"] == 2 and metadata["output"]["age_probabilities"] == ["batch", 8]
    assert metadata.items() <= json.loads((tmp_path / "iefp.pt2.json").read_text()).items()


def test_safetensors_hold_the_published_tensors_and_load_wherever_weights_do(tmp_path, run_main, lively_weights, model):
    identity, both = tmp_path / "identity.safetensors", tmp_path / "both.safetensors"
    for path, flags in ((identity, ()), (both, ("--with-age",))):
        outcome = run_main("export", "--weights", lively_weights, "-o", path, *flags)
        assert outcome.status == 0 and "largest difference to PyTorch 0 " in outcome.out, outcome
        assert run_main("export", "--weights", lively_weights, "--check", path).status == 0
    published = iefp_file_tensors(model)
    ages = ("backbone_ae.", "age_estimator.")
    for path, prefixes in ((identity, ("backbone_id.",)), (both, ("backbone_id.", *ages))):
        wanted = {key for key in published if key.startswith(prefixes)}
        found = load_file(path)
        assert set(found) == wanted and all(torch.equal(found[key], published[key]) for key in wanted)
        assert path.stat().st_mode & 0o044 == lively_weights.stat().st_mode & 0o044
    assert load_for_embedding(identity)[1] is False and load_for_embedding(both)[1] is True
    other = lively(seed=9)
    assert "0 start new" in load_what_fits(other, both, ("backbone_id.",))
    load_age_branch(other, both)
    assert torch.equal(other.backbone_ae.fc.weight, model.backbone_ae.fc.weight)
    refused(load_age_branch, other, identity, match="holds no age branch")
    assert load_for_ages(both).backbone_ae.purification == 1
    torch.save(iefp_file_tensors(lively(seed=4)), tmp_path / "other.pth")
    in_one_sentence(run_main("export", "--weights", tmp_path / "other.pth", "--check", both), "gives other numbers")


def test_train_and_test_take_safetensors_and_before_is_what_test_py_reports(
    tmp_path, run_main, lively_weights, tiny_faces, train_identity
):
    path, names = tmp_path / "both.safetensors", ("fgnet", "morph2", "cacd_vs")
    common = ("--face-dataset", tiny_faces, "--workers", 0)
    exported = run_main(
        "export", "--weights", lively_weights, "-o", path, "--with-age", *common, "--measure-on", *names
    )
    assert exported.status == 0, exported.err
    tested = run_main("test", "--weights", lively_weights, path, *common, "--benchmarks", *names, "--no-analysis",
                      "--no-keep-embeddings", "--output", tmp_path, "--device", "cpu")  # fmt: skip
    assert tested.status == 0, tested.err
    of_pth, of_safetensors = json.loads((tmp_path / "results.json").read_text())["models"]
    results = of_pth["results"]
    assert results == of_safetensors["results"] and "age" in results["fgnet"]
    measured = json.loads((tmp_path / "both.safetensors.json").read_text())["measured"]
    reported = {
        "FG-NET leave-one-out rank-1": results["fgnet"]["leave_one_out"]["concatenate"]["rank1_percent"],
        "MORPH2 3,000 rank-1": results["morph2_3000"]["probe_gallery"]["concatenate"]["rank1_percent"],
        "CACD-VS accuracy": results["cacd_vs"]["verification"]["concatenate"]["accuracy_percent"],
    }
    for column in ("before_percent", "after_percent"):
        assert {name: figures[column] for name, figures in measured.items()} == reported
    trained = train_identity(tmp_path / "run", "--age-weights", path, "--init-from", path, "--epochs", 1,
                             "--backbone", SLIM)  # fmt: skip
    assert trained.status == 0, trained.err
    assert "start new (margin_fc." in trained.out, trained.out


def test_the_sign_of_a_purification_unit_goes_along(tmp_path, run_main):
    source = tmp_path / "plus.pth"
    model = lively("x_plus_linear_relu_bn")
    torch.save(iefp_file_tensors(model), source)
    source.with_suffix(".json").write_text(json.dumps(describe_branches(model)))
    (tmp_path / "elsewhere").mkdir()
    path = tmp_path / "elsewhere" / "plus.safetensors"
    assert run_main("export", "--weights", source, "-o", path).status == 0
    assert read_weight_file(path).identity_branch.purification == "x_plus_linear_relu_bn"


def test_metadata_become_text_and_come_back():
    metadata = {"format": "1", "text": "plain words", "list": [1, 2.5, {"a": None}], "number": 3}
    assert from_texts(as_texts(metadata)) == metadata
    assert from_texts({"a": "[" * 100_000, "b": "{"}) == {"a": "[" * 100_000, "b": "{"}


def tensors_of(weights):
    return {
        key: value for key, value in torch.load(weights, weights_only=True).items() if key.startswith("backbone_id")
    }


def with_header(header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
HOSTILE = {
    "empty": b"", "seven bytes": b"\0" * 7, "no header": struct.pack("<Q", 0),
    "a header of 2^64 bytes": b"\xff" * 8 + b"{}",
    "a header of 90 MB": struct.pack("<Q", 90_000_000) + b"{}",
    "a header longer than the file": struct.pack("<Q", 5_000_000) + b"{}",
    "no JSON": with_header(b"\x80\x04abc"), "a list": with_header([]), "a number": with_header(b"1"),
    "brackets in brackets": with_header(b"[" * 200_000), "tables in tables": with_header(b'{"a":' * 200_000),
    "a tensor beyond the end": with_header({"a": F32}, b"\0" * 4),
    "a tensor that claims gigabytes": with_header(
        {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}, b"\0" * 8
    ),
    "sizes that overflow": with_header(
        {"a": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 8]}}, b"\0" * 8
    ),
    "offsets backwards": with_header({"a": F32 | {"data_offsets": [8, 0]}}, b"\0" * 8),
    "two tensors in one place": with_header({"a": F32, "b": F32}, b"\0" * 8),
    "negative sizes": with_header({"a": F32 | {"shape": [-2]}}, b"\0" * 8),
    "an unknown dtype": with_header({"a": F32 | {"dtype": "OBJECT"}}, b"\0" * 8),
    "metadata that is no text": with_header({"__metadata__": {"branches": 3}, "a": F32}, b"\0" * 8),
    "no tensors": with_header({"__metadata__": {}}),
    "another network's": with_header({"\x1b[31m": F32}, b"\0" * 8),
    "a pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
    "complex numbers": with_header({"a": {"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}}, b"\0" * 8),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_safetensors_file_is_an_error_of_one_sentence(tmp_path, kind):
    path = tmp_path / "file.safetensors"
    path.write_bytes(HOSTILE[kind])
    with pytest.raises(UserError) as caught:
        read_weight_file(path)
    assert len(str(caught.value)) < 1000 and printable(str(caught.value)) == str(caught.value)


@pytest.mark.parametrize(
    "branches",
    ["{", "[" * 90_000, '{"identity_branch": {"purification": "%s"}}' % ("x" * 200_000),
     '{"identity_branch": {"purification": 7}}'],
)  # fmt: skip
def test_a_hostile_description_in_safetensors_is_an_error_of_one_sentence(tmp_path, lively_weights, branches):
    path = tmp_path / "file.safetensors"
    path.write_bytes(save(tensors_of(lively_weights), {"branches": branches}))
    with pytest.raises(UserError) as caught:
        read_weight_file(path)
    assert len(str(caught.value)) < 1000 and str(caught.value).isprintable()


def test_cut_and_changed_safetensors_are_errors_or_read(tmp_path, lively_weights):
    whole = save(tensors_of(lively_weights), {"branches": "null"})
    path = tmp_path / "file.safetensors"
    header = 8 + int.from_bytes(whole[:8], "little")
    for length in (8, 100, header - 1, header, header + 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(read_weight_file, path, match="can't be read as a weight file")
    random = np.random.RandomState(0)
    for _ in range(60):  # any byte of the header may change anything, but nothing else than a UserError comes out
        changed = bytearray(whole)
        changed[random.randint(header)] = random.randint(256)
        path.write_bytes(changed)
        try:
            read_weight_file(path)
        except UserError as error:
            assert len(str(error)) < 1000


def test_flags_that_do_not_go_together_are_errors(tmp_path, run_main, lively_weights, calibration):
    def export(*flags):
        return run_main("export", "--weights", lively_weights, *flags)

    (tmp_path / "empty").mkdir()
    onnx_path, tensors = tmp_path / "a.onnx", tmp_path / "a.safetensors"
    in_one_sentence(export(), "give either -o FILE")
    in_one_sentence(export("-o", onnx_path, "--check", onnx_path), "give either -o FILE")
    in_one_sentence(export("-o", tmp_path / "a.tflite"), "a.tflite", ".onnx, .safetensors, .pt2")
    in_one_sentence(export("-o", tmp_path / "none" / "a.onnx"), str(tmp_path / "none"), "does not exist")
    in_one_sentence(export("--check", tmp_path / "a.pt2"), "would unpickle it")
    in_one_sentence(export("-o", tensors, "--precision", "fp16"), "--precision fp16 is for .onnx")
    in_one_sentence(export("-o", tensors, "--views", "two"), "--views and --input are for")
    in_one_sentence(export("-o", onnx_path, "--precision", "int8"), "needs --calibration-pictures")
    for folder in (tmp_path / "empty", tmp_path / "none"):
        flags = ("-o", onnx_path, "--precision", "int8", "--calibration-pictures", folder)
        in_one_sentence(export(*flags), str(folder), "holds no picture")
    flags = ("-o", onnx_path, "--face-dataset", tmp_path, "--measure-on")
    in_one_sentence(export(*flags, "fgnet"), "does not exist", BENCHMARKS["fgnet"].source)
    in_one_sentence(export(*flags, "calfw"), "does not exist", BENCHMARKS["calfw"].source)
    assert [file.name for file in tmp_path.iterdir()] == ["empty"]
    tensors.write_bytes(before := save(tensors_of(lively_weights)))
    in_one_sentence(run_main("export", "--weights", tensors, "-o", tensors), "give another name")
    assert tensors.read_bytes() == before


def test_weights_without_the_branch_asked_for_are_errors(tmp_path, run_main, model):
    ages, bare = tmp_path / "age.pth", tmp_path / "backbone.pth"
    torch.save(age_file_tensors(model), ages)
    torch.save(model.backbone_id.state_dict(), bare)
    for weights, flags, words in ((ages, (), "age.pth holds no identity branch"),
                                  (bare, ("--with-age",), "backbone.pth holds no age branch")):  # fmt: skip
        in_one_sentence(run_main("export", "--weights", weights, "-o", tmp_path / "a.onnx", *flags), words)


def test_a_network_too_large_for_half_precision_is_an_error(tmp_path, run_main):
    model = lively()
    model.backbone_id.layer4[1].conv2.weight.data *= 1e6
    torch.save(iefp_file_tensors(model), tmp_path / "large.pth")
    outcome = run_main("export", "--weights", tmp_path / "large.pth", "-o", tmp_path / "a.onnx", "--precision", "fp16")
    in_one_sentence(outcome, "gives no finite numbers", "fp16 is too short")
    assert [file.name for file in tmp_path.iterdir()] == ["large.pth"]


@pytest.mark.parametrize("suffix, package", [("onnx", "onnx"), ("onnx", "onnxscript"), ("onnx", "onnxruntime"),
                                             ("safetensors", "safetensors")])  # fmt: skip
def test_a_missing_package_is_named_in_the_error(tmp_path, run_main, lively_weights, monkeypatch, suffix, package):
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    outcome = run_main("export", "--weights", lively_weights, "-o", tmp_path / f"a.{suffix}")
    in_one_sentence(outcome, f"the package {package} is needed", "pip install", package)
    assert list(tmp_path.iterdir()) == []
    if suffix == "safetensors":
        (tmp_path / "a.safetensors").write_bytes(save({"x": torch.zeros(1)}))
        refused(read_weight_file, tmp_path / "a.safetensors", match="pip install safetensors")


def foreign_onnx(opset=18, **metadata):
    """An ONNX file that gives its input back."""
    shape = ["batch", 3, 112, 112]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["images"], ["embeddings"])], "foreign",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("embeddings", TensorProto.UINT8, shape)],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    helper.set_model_props(model, metadata)
    return model


OURS = {"format": "1", "precision": "fp32", "views": "1", "input": '{"dtype": "uint8"}'}


def test_files_that_are_not_ours_are_errors_of_check(tmp_path, run_main, lively_weights):
    path = tmp_path / "a.onnx"

    def check(content):
        path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
        return run_main("export", "--weights", lively_weights, "--check", path)

    in_one_sentence(run_main("export", "--weights", lively_weights, "--check", path), "a.onnx")
    in_one_sentence(check(b"no protobuf"), "can't be read as an ONNX file")
    in_one_sentence(check(b""), "was not written by export.py")
    in_one_sentence(check(foreign_onnx()), "was not written by export.py")
    in_one_sentence(check(foreign_onnx(opset=17, **OURS)), "has opset 17, and export.py writes 18")
    in_one_sentence(check(foreign_onnx(**OURS | {"precision": "fp8"})), "was changed after")
    in_one_sentence(check(foreign_onnx(**OURS | {"input": '{"dtype": []}'})), "was changed after")
    in_one_sentence(check(foreign_onnx(**OURS | {"views": "[1]"})), "was changed after")
    in_one_sentence(check(foreign_onnx(**OURS)), "gives other numbers than")
    in_one_sentence(check(foreign_onnx(**OURS | {"input": '{"dtype": "float32"}'})), "can't run")
    outside = foreign_onnx(**OURS)
    tensor = outside.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    in_one_sentence(check(outside), "keeps weights in other files")
    broken = foreign_onnx(**OURS)
    broken.graph.node[0].op_type = "NoSuchOperator"
    in_one_sentence(check(broken), "can't run")
