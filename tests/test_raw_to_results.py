"""Raw releases in their published formats: prepare.py aligns them, finds nothing wrong, and test.py scores them."""

import pytest
from raw_releases import CALFW, draw, fgnet, morph2  # noqa: F401 (fixtures)

from meta import BENCHMARKS


@pytest.fixture
def calfw(tmp_path):
    raw = tmp_path / "raw"
    (raw / "CA_landmarks").mkdir(parents=True)
    for seed, name in enumerate(sorted({line.split()[0] for line in CALFW.splitlines()})):
        points = draw(raw / "images" / name, seed)
        text = "".join(f"{x:.4f} {y:.4f}\n" for x, y in points)
        (raw / "CA_landmarks" / f"{name[:-4]}_5loc_attri.txt").write_text(text)
    (raw / "pairs_CALFW.txt").write_text(CALFW)
    return raw


@pytest.fixture
def go(run_main, run_test, tmp_path):
    """raw -> prepare -> check -> test.py; gives the results."""

    def run(name: str, command: str, *flags: object) -> dict:
        root = tmp_path / "face_dataset"
        aligned = run_main("prepare", command, *flags, "--output", root, "--workers", 1)
        assert aligned.status == 0, aligned.err
        checked = run_main("prepare", "check", name, "--face-dataset", root, "--workers", 0)
        assert checked.status == 0, checked.out
        tested, model = run_test(root, "--benchmarks", name)
        assert tested.status == 0, tested.err
        return model["results"]

    return run


def test_fgnet(go, fgnet):  # noqa: F811
    result = go("fgnet", "align-fgnet", "--raw", fgnet)["fgnet"]
    assert (result["num_images"], result["num_identities"]) == (6, 3)


def test_morph2(go, morph2):  # noqa: F811
    raw, landmarks = morph2
    results = go("morph2", "align-morph2", "--raw", raw, "--landmarks", landmarks, "--counts", 2, 5)
    assert [results[f"morph2_{count}"]["num_probes"] for count in BENCHMARKS["morph2"].subject_counts] == [2, 5]


def test_calfw(go, calfw):
    assert go("calfw", "align-calfw", "--raw", calfw)["calfw"]["num_pairs"] == 20
