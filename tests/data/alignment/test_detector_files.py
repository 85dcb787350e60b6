"""Files given as --detector that are none, and their like at other flags: one sentence, before the first picture."""

import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
from photographs import YUNET, astronaut, drawn, empty_scene, place
from PIL import Image, ImageChops
from scripts import load_script

from data.alignment.detectors import DetectorError, InsightFace, YuNet, open_detector
from data.alignment.photos import Aligner, list_pictures, load_pieces
from evaluation.embeddings.photos import Seen
from meta import UserError
from utils.files import numbered_lines

WEB_PAGE = b"\n<!DOCTYPE html>\n<html><head><title>opencv_zoo</title></head></html>\n"
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:8f2383e4\nsize 232589\n"
needs_yunet = pytest.mark.skipif(not YUNET.is_file(), reason="YuNet's file is not beside the project")


@pytest.fixture(autouse=True)
def nothing_opened():
    open_detector.cache_clear()
    yield
    open_detector.cache_clear()


@pytest.fixture
def photos(tmp_path):
    """Five photographs without a face."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(5):
        Image.new("RGB", (300, 200), (40 * i, 90, 120)).save(folder / f"{i}.png")
    return folder


def recognition_network(path: Path) -> None:
    """An ONNX file of images (1, 3, 112, 112) -> embeddings (1, 4): well-formed, and no detector."""
    onnx = pytest.importorskip("onnx")
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    weight = onnx.numpy_helper.from_array(np.ones((4, 3 * 112 * 112), np.float32), "weight")
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["images"], ["flat"]),
         helper.make_node("Gemm", ["flat", "weight"], ["embeddings"], transB=1)],
        "recognition",
        [helper.make_tensor_value_info("images", floats, [1, 3, 112, 112])],
        [helper.make_tensor_value_info("embeddings", floats, [1, 4])],
        [weight],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path.write_bytes(model.SerializeToString())


def archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("yunet.onnx", b"a model")


def broken_off(path: Path) -> None:
    recognition_network(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


CANNOT_BE_USED = {
    "a web page": (WEB_PAGE, "is a web page, no ONNX file: open its address in a browser"),
    "a pointer of Git LFS": (LFS_POINTER, "is a pointer of Git LFS, no ONNX file: run `git lfs pull`"),
    "nothing": (b"", "is empty: get it again"),
    "noise": (bytes(range(256)) * 8, "(YuNet: OpenCV can't read it as an ONNX model, "),
    "a ZIP archive": (archive, "is a ZIP archive, no ONNX file: unpack it"),
    "a folder": (Path.mkdir, "is a folder: give the ONNX file itself"),
    "half a file": (broken_off, "(YuNet: OpenCV can't read it as an ONNX model, "),
    # OpenCV 4 and 5 find out at different places that it is no detector.
    "another network": (recognition_network, "can be used as no detector (YuNet: "),
}


def make(path: Path, content) -> Path:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)
    return path


@pytest.mark.parametrize("case", CANNOT_BE_USED)
def test_a_detector_that_cannot_be_used_ends_the_run_once(run_main, weights, photos, tmp_path, monkeypatch, case):
    """17, 13: a file that is no detector is one sentence and status 2, before weights and pictures are read."""
    pytest.importorskip("cv2")
    content, words = CANNOT_BE_USED[case]
    path = make(tmp_path / "yunet.onnx", content)

    def too_late(*_):
        raise AssertionError("weights were read before the detector was tried")

    monkeypatch.setattr(load_script("embed"), "load", too_late)
    reply = run_main("embed", photos, "-o", tmp_path / "faces.npz", "--detector", path, "--on-bad-picture", "skip",
                    "--weights", weights, "--device", "cpu", "--workers", 0)  # fmt: skip
    assert reply.status == 2 and not reply.out
    assert reply.err.count("\n") == 1 and reply.err.startswith(f"embed.py: --detector {path} ") and words in reply.err
    assert "face_detection_yunet_2023mar.onnx of https://github.com/opencv/opencv_zoo" in reply.err
    assert not (tmp_path / "faces.npz").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_detector_at_fault_is_never_a_bad_picture(photos, tmp_path, workers):
    """17: from Python, where nothing tried the detector before, and in a worker process it ends the run as well."""
    pytest.importorskip("cv2")
    path = make(tmp_path / "yunet.onnx", WEB_PAGE)
    pieces = load_pieces(list_pictures([photos]), Aligner(detector_path=str(path)), batch_size=2, workers=workers)
    seen = Seen("skip")
    with pytest.raises(UserError, match=r"yunet\.onnx is a web page, no ONNX file") as caught:
        list(seen.passing(pieces))
    assert "\n" not in str(caught.value) and not seen.failures


class Detector:
    """Stands in for OpenCV's: fails for pictures of 200 rows, finds nothing in others."""

    rows = None

    def setInputSize(self, size):
        self.size = size

    def detect(self, pixels):
        if len(pixels) == 200:
            raise RuntimeError("OpenCV: an assertion\n   failed")
        return 1, self.rows


def test_a_picture_that_opencv_cannot_search_is_a_bad_picture(photos, monkeypatch):
    """13: an error of OpenCV's while it looks for faces is a sentence about the picture and no traceback."""
    Image.new("RGB", (300, 100)).save(photos / "5.png")
    monkeypatch.setattr("data.alignment.detectors.open_detector", lambda path: YuNet(Detector()))
    pieces = load_pieces(list_pictures([photos]), Aligner(detector_path="yunet.onnx"), batch_size=6)
    (piece,) = Seen("skip").passing(pieces)
    assert piece.failures[0].startswith("no face can be looked for in '0.png', OpenCV can't search 300 x 200 pixels")
    assert "(OpenCV: an assertion failed)" in piece.failures[0]
    assert piece.failures[5].startswith("no face was found in '5.png'")


def test_a_detector_of_another_kind_is_no_fault_of_the_picture():
    """13: an array that YuNet doesn't give is the detector's fault."""
    detector = Detector()
    detector.rows = np.zeros((3, 7), np.float32)
    with pytest.raises(DetectorError, match=r"gives an array \(3, 7\), where YuNet gives 15 numbers a face"):
        YuNet(detector).find_faces(Image.new("RGB", (64, 64)))


@needs_yunet
@pytest.mark.parametrize("size", [(640, 427), (50, 300)])
def test_yunet_itself_passes_the_trial_and_searches_any_size(size):
    """17: the true detector is not refused."""
    pytest.importorskip("cv2")
    found = open_detector(str(YUNET)).find_faces(Image.new("RGB", size, (128, 128, 128)))
    assert found.points.shape[1:] == (5, 2) and len(found.points) == len(found.scores)


@needs_yunet
def test_workers_search_with_the_detector_that_was_tried_before_them(photos):
    """17: trying the detector first doesn't hang the processes that are forked afterwards."""
    pytest.importorskip("cv2")
    open_detector(str(YUNET))
    pieces = load_pieces(list_pictures([photos]), Aligner(detector_path=str(YUNET)), batch_size=2, workers=1)
    failures = [reason for piece in pieces for reason in piece.failures.values()]
    assert len(failures) == 5 and all(reason.startswith("no face was found in") for reason in failures)


@needs_yunet
def test_yunet_itself_brings_a_photograph_to_an_aligned_face():
    """17: the detector that passed the trial is the one that finds the face."""
    pytest.importorskip("cv2")
    if (picture := astronaut()) is None:
        pytest.skip("scikit-image has no picture of the astronaut")
    aligner = Aligner(detector_path=str(YUNET))
    face = aligner.face(picture, "astronaut")
    assert face.aligned_by == "detector" and not face.notes  # one face
    aligned = Image.fromarray(face.pixels.permute(1, 2, 0).numpy())
    again = aligner.face(aligned, "aligned")
    assert again.aligned_by == "as given" and not again.notes and again.pixels.equal(face.pixels)
    for beside in (ImageChops.offset(aligned, 20, 0), aligned.rotate(180)):
        (note,) = aligner.face(beside, "beside").notes
        assert note.startswith("'beside' is 112x112 and taken as it is, but the detector finds ")


@pytest.fixture(params=["free size", "640 x 640"])
def yunet(request, tmp_path):
    """The two files that are published: 2023's has a fixed size."""
    pytest.importorskip("cv2")
    if request.param == "free size":
        return open_detector(str(YUNET))
    onnx = pytest.importorskip("onnx")
    model = onnx.load(YUNET)
    for dim, side in zip(model.graph.input[0].type.tensor_type.shape.dim, (1, 3, 640, 640), strict=True):
        dim.dim_value = side
    onnx.save(model, tmp_path / "fixed.onnx")
    return open_detector(str(tmp_path / "fixed.onnx"))


@needs_yunet
@pytest.mark.parametrize("angle", [0, 30, -70, 180])
def test_the_points_of_a_turned_face_turn_with_it(yunet, angle):
    """12: YuNet's own points of turned faces are those of upright ones, 20 pixels off at 60 degrees."""
    scene = empty_scene((600, 450))
    points = place(scene, drawn(3, 30), (300, 220), angle)
    (face,) = yunet.find_faces(scene).points
    error = np.sqrt(((yunet.refined(scene, face) - points) ** 2).sum(1).mean()) * 112 / 160
    assert error < 10  # pixels of the aligned picture


class TurnedFinder:
    """Stands in for OpenCV's: finds one face in pictures that are higher than wide."""

    def setInputSize(self, size):
        self.size = size

    def detect(self, pixels):
        row = np.array([[0, 0, 50, 60, 10, 20, 40, 20, 25, 35, 12, 50, 38, 50, 0.85]], np.float32)
        return 1, row if pixels.shape[0] > pixels.shape[1] else None


def test_a_picture_without_a_sure_face_is_searched_on_its_sides():
    """12: a face that is found in the turned picture is given where it lies in the picture."""
    (face,) = YuNet(TurnedFinder()).find_faces(Image.new("RGB", (300, 200))).points
    np.testing.assert_allclose(face[:2], [[299 - 20, 10], [299 - 20, 40]])  # turned anticlockwise to be found


class Scrfd:
    """Stands in for what insightface.model_zoo.get_model gives."""

    def __init__(self, input_size=None, points=True):
        self.input_size, self.has_points, self.prepared = input_size, points, None

    def prepare(self, ctx_id, **settings):
        print("the package prints")
        self.prepared = ctx_id, settings

    def detect(self, pixels):
        self.seen = pixels
        boxes = np.array([[0, 0, 10, 10, 0.9], [0, 0, 20, 20, 0.7]], np.float32)
        return boxes, np.arange(20, dtype=np.float32).reshape(2, 5, 2) if self.has_points else None


@pytest.fixture
def insightface(monkeypatch, tmp_path):
    """The package stands for a module that gives this model, and a file for one that YuNet's reader refuses."""
    path = make(tmp_path / "det_10g.onnx", b"\x08\x00a model")

    def install(model):
        zoo = types.ModuleType("insightface.model_zoo")
        zoo.get_model = lambda name: model
        monkeypatch.setitem(sys.modules, "insightface", types.ModuleType("insightface"))
        monkeypatch.setitem(sys.modules, "insightface.model_zoo", zoo)
        open_detector.cache_clear()
        return str(path)

    return install


def test_scrfd_and_retinaface_are_run_by_the_insightface_package(insightface, capsys):
    """12: on the CPU, blue first, the largest face first, at 640 pixels where the file has no size of its own."""
    for own_size, settings in ((None, {"input_size": (640, 640)}), ((320, 320), {})):
        model = Scrfd(own_size)
        detector = open_detector(insightface(model))
        assert isinstance(detector, InsightFace) and model.prepared == (-1, settings)
    found = detector.find_faces(Image.new("RGB", (30, 40), (255, 0, 10)))
    assert model.seen.shape == (40, 30, 3) and model.seen[0, 0].tolist() == [10, 0, 255]
    np.testing.assert_allclose(found.scores, [0.7, 0.9], atol=1e-6)
    assert found.points[0, 0].tolist() == [10, 11] and found.points.dtype == np.float64
    assert capsys.readouterr().out == ""  # where embed.py --json prints


def test_what_insightface_gives_is_checked(insightface, monkeypatch):
    """12: another network, and a detector without points, are a sentence; so is the package that isn't there."""
    for model, words in ((object(), "takes it for another network (object)"), (None, "another network (NoneType)"),
                         (Scrfd(points=False), "faces without their five points")):  # fmt: skip
        with pytest.raises(DetectorError) as caught:
            open_detector(insightface(model))
        assert words in str(caught.value) and "InsightFace: " in str(caught.value)
    path = insightface(None)
    monkeypatch.setitem(sys.modules, "insightface.model_zoo", None)
    with pytest.raises(DetectorError, match="insightface is not installed, pip install insightface onnxruntime"):
        open_detector(path)


@pytest.mark.parametrize(("flag", "name", "wanted"), [
    ("--landmarks", "points.json", "landmark file"), ("--landmarks", "points.csv", "landmark file"),
    ("--calibration", "calibration.json", "calibration"), ("--gallery", "faces.npz", "file of embeddings"),
    ("--gallery", "faces.parquet", "file of embeddings"), ("--weights", "iefp.pth", "weight file"),
    ("--weights", "iefp.safetensors", "weight file"),
])  # fmt: skip
def test_a_web_page_at_another_flag_is_named_once(run_main, weights, photos, tmp_path, flag, name, wanted):
    """17: the files of other flags too are one sentence that says what they are, before the first picture."""
    pictures = sorted(photos.glob("*.png"))[: 1 if flag == "--gallery" else 2]
    for kind in ("a web page", "a pointer of Git LFS"):
        path = make(tmp_path / name, CANNOT_BE_USED[kind][0])
        reply = run_main("embed", *pictures, "--weights", weights, "--device", "cpu", "--workers", 0, flag, path)
        assert reply.status == 2 and reply.err.count("\n") == 1 and f"is {kind}, no {wanted}" in reply.err
        assert str(path) in reply.err


def test_a_web_page_among_lists_and_tables_is_named(tmp_path):
    """17: so are text files: lists of pairs, tables of ages, landmarks of one picture."""
    path = make(tmp_path / "list.txt", WEB_PAGE)
    for what in ("pair list", "age table", "landmark file"):
        with pytest.raises(UserError, match=f"The {what} '.*list.txt' is a web page, no {what}: open its address"):
            list(numbered_lines(path, what, "lines are expected"))
