"""ONNX models of other people: pictures go in as their owners feed them, and files that are no such model are refused.

The networks are linear in the means over squares of pixels: what they give is computed here with NumPy alone.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused
from scripts import load_script

from evaluation.calibration import read_calibration
from evaluation.embeddings.networks import open_network, template_picture
from evaluation.embeddings.photos import embed, load
from models.export import example_images
from models.others.onnx_network import PictureInput, input_of_text
from utils.distributed import DistInfo

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
helper, FLOAT, HALF, BYTES = onnx.helper, 1, 10, 2
PROCESS = DistInfo(0, 1, torch.device("cpu"))
SQUARE = 16  # pixels on a side
AS_INSIGHTFACE = PictureInput()


def matrix(height=112, width=112, size=6) -> np.ndarray:
    draw = np.random.default_rng(height + width + size)
    return draw.standard_normal((3 * (height // SQUARE) * (width // SQUARE), size)).astype(np.float32) / 7


def save(path: Path, nodes, inputs, outputs, weights=(), opset=17, metadata=()) -> Path:
    """inputs and outputs: name -> (type, shape); weights: name -> array."""
    values = [[helper.make_tensor_value_info(name, *how) for name, how in some.items()] for some in (inputs, outputs)]
    arrays = [onnx.numpy_helper.from_array(value, name) for name, value in dict(weights).items()]
    graph = helper.make_graph([helper.make_node(*node[:3], **dict(node[3:])) for node in nodes], "g", *values, arrays)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    for key, value in dict(metadata).items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    path.write_bytes(model.SerializeToString())
    return path


POOL = ("AveragePool", ["x"], ["means"], ("kernel_shape", [SQUARE] * 2), ("strides", [SQUARE] * 2))
LINEAR = [POOL, ("Flatten", ["means"], ["flat"]), ("MatMul", ["flat", "w"], ["features"])]


def linear(path: Path, shape=("n", 3, 112, 112), size=6, **how) -> Path:
    w = matrix(*(side if isinstance(side, int) else 112 for side in shape[2:]), size)
    return save(path, LINEAR, {"x": (FLOAT, shape)}, {"features": (FLOAT, [shape[0], size])}, {"w": w}, **how)


def by_hand(images: np.ndarray, w: np.ndarray, columns=slice(None), bgr=False, mean=127.5, scale=127.5) -> np.ndarray:
    """Features of uint8 images (N, 3, 112, 112)."""
    pixels = images[..., columns].astype(np.float64)
    pixels = ((pixels[:, ::-1] if bgr else pixels) - mean) / scale
    count, _, height, width = pixels.shape
    squares = pixels.reshape(count, 3, height // SQUARE, SQUARE, width // SQUARE, SQUARE)
    return squares.mean(axis=(3, 5)).reshape(count, -1) @ w


def features(path, images, onnx_input=None) -> np.ndarray:
    model = open_network(path, PROCESS, onnx_input).model
    pixels = (torch.from_numpy(np.ascontiguousarray(images)).float() - 127.5) / 127.5
    return model.identity_features(pixels.contiguous(memory_format=torch.channels_last)).numpy()


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return example_images(5, torch.uint8).numpy()


# ------------------------------------------------------------------------------------------------- how pictures go in


def test_words_of_a_model_are_taken_one_by_one_and_written_back():
    taken = input_of_text("bgr 112x96 scale=128 output=fc1", AS_INSIGHTFACE, "--onnx-input")
    assert (taken.colours, taken.height, taken.width, taken.output) == ("BGR", 112, 96, "fc1")
    assert (taken.mean, taken.scale, taken.layout) == ((127.5,), (128.0,), "NCHW")
    three = input_of_text("NHWC mean=104,117,123.5 scale=1", taken, "x.json")
    assert (three.mean, three.layout, three.said_by) == ((104, 117, 123.5), "NHWC", ("--onnx-input", "x.json"))
    assert input_of_text(three.text(), AS_INSIGHTFACE, "").text() == three.text()
    for words in ("grey", "160", "mean=1,2", "scale=nan", "scale=0", "0x112", "9999x9999", "output="):
        refused(input_of_text, words, AS_INSIGHTFACE, "--onnx-input", match="^--onnx-input: ")


def test_insightfaces_convention_is_taken_where_the_file_says_nothing(images, tmp_path):
    path = linear(tmp_path / "w600k.onnx")
    np.testing.assert_allclose(features(path, images), by_hand(images, matrix()), atol=1e-5)
    network = open_network(path, PROCESS)
    assert network.size == 6 and not network.has_age_branch and network.described["onnx_input"]["colours"] == "RGB"
    assert "rgb 112x112 mean=127.5 scale=127.5 (InsightFace's convention), 6 numbers" in network.remarks[0]


def test_a_model_of_mobilefacenets_convention_gets_its_own_columns_one_at_a_time(images, tmp_path):
    """BGR, 112 high, 96 wide, (pixel - 127.5) / 128, 128 numbers, a batch of one; said by flag or beside the file."""
    path = linear(tmp_path / "mobile.onnx", shape=(1, 3, 112, 96), size=128)
    expected = by_hand(images, matrix(112, 96, 128), slice(8, 104), bgr=True, scale=128)
    np.testing.assert_allclose(features(path, images, "bgr scale=128"), expected, atol=1e-5)
    plain = by_hand(images, matrix(112, 96, 128), slice(8, 104))
    np.testing.assert_allclose(features(path, images), plain, atol=1e-5)  # the size is in the file
    beside = tmp_path / "mobile.onnx.json"
    beside.write_text(json.dumps({"input": "bgr 112x96 mean=127.5 scale=128"}))
    np.testing.assert_allclose(features(path, images), expected, atol=1e-5)
    by_file, by_flag = open_network(path, PROCESS), open_network(path, PROCESS, "rgb scale=127.5")
    assert f"({path}.json)" in by_file.remarks[0] and by_file.fingerprint != by_flag.fingerprint
    np.testing.assert_allclose(features(path, images, "rgb scale=127.5"), plain, atol=1e-5)  # the flag goes before
    refused(open_network, path, PROCESS, "160x160", match=r"shape \(1, 3, 112, 96\) and not of 160x160.*leave the size")
    for text in ("[1", "[1]", '"rgb"'):  # the last two are JSON and say nothing: not to be passed over
        beside.write_text(text)
        refused(open_network, path, PROCESS, match="can't be read as a JSON object")


def test_pixels_of_models_that_normalise_them_inside_go_in_as_bytes(images, tmp_path):
    inside = [("Sub", ["x0", "mean"], ["a"]), ("Mul", ["a", "factor"], ["x"]), *LINEAR]
    weights = {"w": matrix(), "mean": np.float32(127.5), "factor": np.float32(1 / 127.5)}
    named = [(*node[:3], ("name", name), *node[3:])
             for node, name in zip(inside, ("_minusscalar0", "_mulscalar0", "p", "f", "m"), strict=True)]  # fmt: skip
    path = save(tmp_path / "m.onnx", named, {"x0": (FLOAT, ["n", 3, 112, 112])}, {"features": (FLOAT, None)}, weights)
    np.testing.assert_allclose(features(path, images), by_hand(images, matrix()), atol=1e-5)
    assert "mean=0 scale=1 (its first nodes)" in open_network(path, PROCESS).remarks[0]


def test_a_picture_is_resized_for_a_model_of_another_size(images, tmp_path):
    """What the model sees is what Pillow makes of the picture, within a grey value or so of rounding."""
    path = linear(tmp_path / "facenet.onnx", shape=("n", 3, 160, 160))
    larger = np.stack([np.array(Image.fromarray(one.transpose(1, 2, 0)).resize((160, 160), Image.Resampling.BILINEAR))
                       for one in images]).transpose(0, 3, 1, 2)  # fmt: skip
    np.testing.assert_allclose(features(path, images), by_hand(larger, matrix(160, 160)), atol=0.01)


def nhwc(path):
    return save(path, [("Transpose", ["p"], ["x"], ("perm", [0, 3, 1, 2])), *LINEAR],
                {"p": (FLOAT, ["n", 112, 112, 3])}, {"features": (FLOAT, None)}, {"w": matrix()})  # fmt: skip


def in_half(path):
    return save(path, LINEAR, {"x": (HALF, ["n", 3, 112, 112])}, {"features": (HALF, None)},
                {"w": matrix().astype(np.float16)})  # fmt: skip


def of_bytes(path):
    weights = {"w": matrix() / 127.5, "half": np.float32(127.5)}
    nodes = [("Cast", ["p"], ["q"], ("to", FLOAT)), ("Sub", ["q", "half"], ["x"]), *LINEAR]
    metadata = {"input": "p", "picture_input": "rgb 112x112"}  # the first is another tool's
    return save(path, nodes, {"p": (BYTES, ["n", 3, 112, 112])}, {"features": (FLOAT, None)}, weights, 17, metadata)


def with_other_outputs(path):
    nodes = [*LINEAR, ("ReduceMean", ["features"], ["quality"], ("axes", [1]))]
    outputs = {"means": (FLOAT, None), "quality": (FLOAT, None), "features": (FLOAT, None)}
    return save(path, nodes, {"x": (FLOAT, ["n", 3, 112, 112])}, outputs, {"w": matrix()})


def with_sides(path):
    """Features of shape (N, D, 1, 1)."""
    nodes = [*LINEAR, ("Unsqueeze", ["features", "axes"], ["out"])]
    weights = {"w": matrix(), "axes": np.array([2, 3])}
    return save(path, nodes, {"x": (FLOAT, ["n", 3, 112, 112])}, {"out": (FLOAT, None)}, weights)


def fixed_inside(path):
    """The shape promises any batch, and a node in the middle knows one picture only."""
    nodes = [POOL, ("Reshape", ["means", "shape"], ["flat"]), LINEAR[2]]
    weights = {"w": matrix(), "shape": np.array([1, len(matrix())])}
    return save(path, nodes, {"x": (FLOAT, ["n", 3, 112, 112])}, {"features": (FLOAT, None)}, weights)


KINDS = {
    "a batch of four": lambda path: linear(path, (4, 3, 112, 112)),
    "free sides": lambda path: linear(path, ("n", 3, "h", "w")),
    "a free rank": lambda path: save(path, LINEAR, {"x": (FLOAT, None)}, {"features": (FLOAT, None)}, {"w": matrix()}),
    "another opset": lambda path: linear(path, opset=11),
    "nhwc": nhwc,
    "half precision": in_half,
    "bytes": of_bytes,
    "other outputs": with_other_outputs,
    "sides of one": with_sides,
    "a batch fixed inside": fixed_inside,
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_models_of_many_forms_give_the_same_features(kind, images, tmp_path):
    found = features(KINDS[kind](tmp_path / "model.onnx"), images)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, by_hand(images, matrix()), atol=5e-3 if kind == "half precision" else 1e-5)


def test_one_of_several_features_is_chosen_by_name(images, tmp_path):
    nodes = [*LINEAR, ("Neg", ["features"], ["other"])]
    path = save(tmp_path / "two.onnx", nodes, {"x": (FLOAT, ["n", 3, 112, 112])},
                {"features": (FLOAT, None), "other": (FLOAT, None)}, {"w": matrix()})  # fmt: skip
    refused(open_network, path, PROCESS, match="has 2 outputs of shape.*--onnx-input 'output=features'")
    np.testing.assert_allclose(features(path, images, "output=other"), -by_hand(images, matrix()), atol=1e-5)
    refused(open_network, path, PROCESS, "output=third", match="no output 'third': give.*features, other")


# ----------------------------------------------------------------------------------------------- files that are no such


def detector(path):
    """As SCRFD is: scores, boxes and points of all places of all pictures, in rows."""
    shapes = {f"{what}{k}": np.array([-1, size]) for k in (0, 1) for what, size in (("score", 1), ("box", 4))}
    nodes = [("Reshape", ["x", name], [f"out_{name}"]) for name in shapes]
    outputs = {f"out_{name}": (FLOAT, None) for name in shapes}
    return save(path, nodes, {"x": (FLOAT, [1, 3, 640, 640])}, outputs, shapes)


def detector_of_any_size(path):
    """As YuNet is: of sides that 32 divides."""
    shapes = {f"{what}{k}": np.array([1, -1, 32]) for k in (0, 1) for what in ("score", "box")}
    nodes = [("Reshape", ["x", name], [f"out_{name}"]) for name in shapes] + [("Add", ["x", "places"], ["late"])]
    outputs = {f"out_{name}": (FLOAT, None) for name in shapes} | {"late": (FLOAT, None)}
    return save(
        path, nodes, {"x": (FLOAT, [1, 3, "h", "w"])}, outputs, shapes | {"places": np.zeros((1, 3, 128, 128), "f")}
    )


def with_scale(path, value):
    nodes = [*LINEAR[:2], ("MatMul", ["flat", "w"], ["y"]), ("Mul", ["y", "k"], ["features"])]
    weights = {"w": matrix(), "k": np.float32(value)}
    return save(path, nodes, {"x": (FLOAT, ["n", 3, 112, 112])}, {"features": (FLOAT, None)}, weights)


def two_inputs(path):
    inputs = {"x": (FLOAT, ["n", 3, 112, 112]), "phase_train": (FLOAT, [1])}
    return save(
        path, [*LINEAR[:2], ("Mul", ["flat", "phase_train"], ["features"])], inputs, {"features": (FLOAT, None)}
    )


def of_text(path):
    return save(
        path, [("Cast", ["t"], ["features"], ("to", FLOAT))], {"t": (7, ["n", 77])}, {"features": (FLOAT, None)}
    )


def cut_short(path):
    linear(path)
    path.write_bytes(path.read_bytes()[:200])
    return path


REFUSED = {
    "a detector": (detector, "gives no features.*face detectors have them; those go to --detector"),
    "a detector of any size": (detector_of_any_size, "can't run on a face of 112x112 and has 5 outputs, as face det"),
    "an opset to come": (lambda path: linear(path, opset=99), "onnxruntime .* can't run .*update onnxruntime"),
    "zeros": (lambda path: with_scale(path, 0), "features of a face that are all zero"),
    "not finite": (lambda path: with_scale(path, np.nan), "hold NaN or infinity"),
    "a picture too large": (lambda path: linear(path, ("n", 3, 4096, 4096)), "more than 1024 pixels on a side"),
    "a batch too large": (lambda path: linear(path, (10**6, 3, 112, 112)), "or 4096 pictures at once"),
    "two inputs": (two_inputs, r"has 2 inputs \(x, phase_train\)"),
    "a model of words": (of_text, r"an input of shape \(any, 77\).*no picture in colour"),
    "half a file": (cut_short, "can't"),
    "nothing": (lambda path: path.write_bytes(b"") or path, "is empty"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_model_of_faces_ends_in_one_sentence_before_a_picture_is_read(kind, run_main, tmp_path):
    make, words = REFUSED[kind]
    path = make(tmp_path / "x.onnx")
    Image.new("RGB", (112, 112)).save(tmp_path / "a.png")
    outcome = run_main("embed", tmp_path / "a.png", "-o", tmp_path / "a.npz", "--weights", path, "--device", "cpu")
    assert outcome.status == 2 and outcome.err.count("\n") == 1 and str(path) in outcome.err
    assert re.search(words, outcome.err), outcome.err


def test_a_classifier_of_a_thousand_things_is_warned_about(tmp_path):
    network = open_network(linear(tmp_path / "resnet50.onnx", shape=("n", 3, 224, 224), size=1000), PROCESS)
    assert network.size == 1000 and "as a classifier of ImageNet's pictures does" in network.remarks[1]


def test_where_branches_are_needed_an_onnx_model_is_refused(run_main, tiny_faces, tmp_path):
    path = linear(tmp_path / "x.onnx")
    for flags in (("prepare", "ages", "--data", tiny_faces / "ID_processed_FGNET", "--weights", path, "--output",
                   tmp_path / "a.csv"),
                  ("export", "--weights", path, "-o", tmp_path / "y.safetensors"),
                  ("embed", tmp_path, "--onnx-input", "bgr", "--weights", tmp_path / "x.pth")):  # fmt: skip
        (tmp_path / "x.pth").write_bytes(b"\x80\x00" * 50)
        outcome = run_main(*flags)
        assert outcome.status == 2 and outcome.err.count("\n") == 1, outcome
        assert "ONNX model, which has no branches" in outcome.err or "none of the --weights ends in" in outcome.err


def test_the_probe_is_a_face_whose_mirror_image_is_another_picture():
    picture = template_picture()
    assert picture.shape == (1, 3, 112, 112) and picture.dtype == torch.uint8
    assert not torch.equal(picture, picture.flip(-1)) and picture[0, 0, 52, 38] == 20


# --------------------------------------------------------------------------------------------------- scripts with them


def test_an_onnx_model_is_tested_calibrated_and_answers(run_main, tiny_faces, tmp_path, monkeypatch):
    """test.py writes what was taken; embed.py takes the calibration and galleries of the same convention alone.

    Embeddings that embed.py wrote are tested too, and get the same thresholds under the model's name.
    """
    monkeypatch.setattr("evaluation.report.page.svg_of", lambda plot: b"")
    path, how = linear(tmp_path / "mobile.onnx", (1, 3, 112, 96), 20), ("--onnx-input", "bgr scale=128")
    small = ("--device", "cpu", "--workers", 0)
    test = ("--face-dataset", tiny_faces, "--benchmarks", "fgnet")
    ran = run_main("test", "--weights", path, *how, *small, *test, "--output", tmp_path / "results", "--cache-folder",
                   tmp_path / "cache")  # fmt: skip
    assert ran.status == 0 and "input bgr 112x96 mean=127.5 scale=128" in ran.out, ran.err
    (entry,) = json.loads((tmp_path / "results" / "results.json").read_text())["models"]
    assert entry["onnx_input"]["text"] == "bgr 112x96 mean=127.5 scale=128" and entry["embedding_size"] == 20
    assert entry["results"]["fgnet"]["leave_one_out"]["concatenate"]["rank1_percent"] > 0
    calibration = tmp_path / "results" / "calibration.json"
    pictures = sorted((tiny_faces / "ID_processed_FGNET").rglob("*.JPG"))
    of = ("--weights", path, *small, "--calibration", calibration, "--far", "1e-1")
    answered = run_main("embed", *pictures[:2], *how, *of)
    assert answered.status == 0 and "at FAR 1e-1" in answered.out and "mobile.onnx: ONNX" in answered.err, answered
    assert "about other weights" in run_main("embed", *pictures[:2], *of).err  # by another convention
    gallery = tmp_path / "faces.npz"
    root = tiny_faces / "ID_processed_FGNET"
    assert run_main("embed", root, "-o", gallery, "--weights", path, *how, *small).status == 0
    assert np.load(gallery)["embeddings"].shape == (len(pictures), 40)
    assert "was made by" in run_main("embed", pictures[0], "--gallery", gallery, "--weights", path, *small).err
    again = run_main("test", "--embeddings", gallery, *test, "--output", tmp_path / "again")
    assert again.status == 0, again.err
    fingerprint = load(path, "cpu", "bgr scale=128").fingerprint
    both = [read_calibration(place, fingerprint, "concatenate").benchmarks["fgnet"]
            for place in (calibration, tmp_path / "again" / "calibration.json")]  # fmt: skip
    assert both[0].points["1e-1"].threshold == pytest.approx(both[1].points["1e-1"].threshold, abs=1e-6)


def test_a_purified_model_keeps_how_pictures_go_in(tmp_path, run_main, monkeypatch):
    """Also in half precision, whose features are float32 afterwards; no flag and no JSON file is needed then."""
    folder, draw = tmp_path / "pictures", np.random.default_rng(0)
    folder.mkdir()
    for k in range(40):
        age = int(draw.integers(0, 90))
        pixels = draw.integers(0, 256 - age, (7, 7, 3), dtype=np.uint8).repeat(16, axis=0).repeat(16, axis=1)
        Image.fromarray(pixels).save(folder / f"{5_000_000 + k}_age_{age}.png")
    monkeypatch.setattr(load_script("purify"), "check_enough", lambda *_: None)
    for name, model, words in (("a", linear(tmp_path / "a.onnx", (1, 3, 112, 96), 20), "bgr scale=128"),
                               ("b", in_half(tmp_path / "b.onnx"), "bgr")):  # fmt: skip
        new = tmp_path / f"{name}_new.onnx"
        outcome = run_main("purify", "--weights", model, "--onnx-input", words, "--data", folder, "-o", new,
                           "--no-keep-embeddings", "--workers", 0, "--device", "cpu")  # fmt: skip
        assert outcome.status == 0 and "held out in 5 folds" in outcome.out, outcome
        assert json.loads(Path(f"{new}.json").read_text())["input"].startswith("bgr 112x")
        Path(f"{new}.json").unlink()
        before, after = open_network(model, PROCESS, words), open_network(new, PROCESS)
        assert after.model.taken.text() == before.model.taken.text()
        assert "metadata" in after.remarks[0]
        pair = [folder / one.name for one in sorted(folder.iterdir())[:2]]
        assert np.abs(embed(after, pair).embeddings - embed(before, pair).embeddings).max() > 1e-3
