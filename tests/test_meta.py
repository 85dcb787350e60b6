"""meta.py: facts that agree with each other and that nobody changes by accident."""

import dataclasses
import re
import subprocess
import sys
from pathlib import PurePosixPath

import pytest
from scripts import ROOT

import meta
from data.filenames import parse_age
from meta import (
    AGE_GROUP_NAMES,
    AGE_GROUP_UPPER_EDGES,
    BENCHMARKS,
    CACD_VS_PAIRS_PER_HALF_FOLD,
    FILENAME_PATTERNS,
    NUM_AGE_GROUPS,
    TRAINING_SETS,
    WEIGHT_FILES,
    UserError,
    age_group,
)

TABLES = {"patterns": FILENAME_PATTERNS, "training": TRAINING_SETS, "benchmarks": BENCHMARKS, "weights": WEIGHT_FILES}
FACTS = [pytest.param(fact, id=f"{table}-{key}") for table, rows in TABLES.items() for key, fact in rows.items()]
each_benchmark = pytest.mark.parametrize("benchmark", BENCHMARKS.values(), ids=list(BENCHMARKS))


# ---------------------------------------------------------------------------------------------- published figures


@pytest.mark.parametrize("figure", meta.PUBLISHED_FIGURES, ids=lambda figure: f"{figure.method} {figure.setting}")
def test_a_published_figure_names_its_paper_and_what_of_ours_measures_the_same(figure):
    assert 50 < figure.value_percent <= 100 and re.search(r", [A-Z]+ \d{4}$", figure.source)
    assert figure.benchmark in {*BENCHMARKS, "lfw", "agedb_30"}
    if figure.benchmark in BENCHMARKS:
        assert figure.protocol in (BENCHMARKS[figure.benchmark].protocol, "verification", "insightface_accuracy")
    assert figure.figure in {"rank1_percent", "accuracy_percent", "accuracy_flip_percent"}


# ----------------------------------------------------------------------------------------------------------- ages


def test_upper_edges_of_age_groups_are_inclusive():
    published = [(0, 12), (13, 18), (19, 25), (26, 35), (36, 45), (46, 55), (56, 65), (66, 120)]
    for group, (youngest, oldest) in enumerate(published):
        assert {age_group(age) for age in range(youngest, oldest + 1)} == {group}


def test_names_of_age_groups_say_their_edges():
    assert len(AGE_GROUP_NAMES) == NUM_AGE_GROUPS == len(AGE_GROUP_UPPER_EDGES) + 1 == 8
    for group, name in enumerate(AGE_GROUP_NAMES[:-1]):
        assert [age_group(int(age)) for age in name.split("-")] == [group, group]
        assert name.endswith(f"-{AGE_GROUP_UPPER_EDGES[group]}")
    assert AGE_GROUP_NAMES[-1] == f"{AGE_GROUP_UPPER_EDGES[-1] + 1}+"


def test_every_example_of_a_file_name_has_the_age_that_its_pattern_reads():
    ages = {"ms1mv3": [39], "fgnet": [2, 43], "morph2": [54], "utkface": [34]}
    for name, pattern in FILENAME_PATTERNS.items():
        assert [parse_age(example, pattern) for example in pattern.example.split(" or ")] == ages[name]


# ----------------------------------------------------------------------------------------------------- benchmarks


@each_benchmark
def test_a_benchmark_has_what_its_protocol_needs_and_nothing_else(benchmark):
    lists, subjects = benchmark.pair_lists != (), benchmark.subject_counts != ()
    assert {
        "leave_one_out": (not lists and not subjects and benchmark.num_pairs == 0),
        "probe_gallery": (not lists and subjects and benchmark.num_pairs == 0),
        "ten_fold_verification": (lists and not subjects and benchmark.num_pairs % 20 == 0 < benchmark.num_pairs),
    }[benchmark.protocol]
    # Ages are read wherever the pictures lie in one folder per identity.
    assert (benchmark.pattern is None) == (benchmark.protocol == "ten_fold_verification")
    assert benchmark.pattern is None or benchmark.pattern in FILENAME_PATTERNS


@each_benchmark
def test_all_that_a_benchmark_reads_lies_where_it_is_unpacked(benchmark):
    for place in (*benchmark.folders, *benchmark.pair_lists):
        path = PurePosixPath(place)
        assert not path.is_absolute() and ".." not in path.parts
        assert path.is_relative_to(benchmark.unpacked_into), place


@each_benchmark
def test_a_pair_list_is_accepted_where_it_is_described_and_one_folder_higher(benchmark):
    if benchmark.pair_lists:
        described, published = map(PurePosixPath, benchmark.pair_lists)
        assert published == described.parent.parent / described.name


def test_morph2_has_a_probe_and_a_gallery_folder_for_each_number_of_subjects():
    morph2 = BENCHMARKS["morph2"]
    names = [PurePosixPath(folder).name for folder in morph2.folders]
    assert names == [f"{side}_{count}" for count in morph2.subject_counts for side in ("probe", "gallery")]


def test_the_rule_of_cacd_vs_and_the_notes_give_the_numbers_of_pairs():
    assert BENCHMARKS["cacd_vs"].num_pairs == 10 * 2 * CACD_VS_PAIRS_PER_HALF_FOLD == 4000
    for name, half in (("cacd_vs", 200), ("calfw", 300)):
        notes = BENCHMARKS[name].notes
        assert f"{BENCHMARKS[name].num_pairs:,} pairs" in notes and f"{half} genuine then {half} impostor" in notes
        assert BENCHMARKS[name].num_pairs == 20 * half


def test_no_two_benchmarks_share_a_title_a_folder_or_a_source():
    places = [folder for benchmark in BENCHMARKS.values() for folder in benchmark.folders]
    assert len(places) == len(set(places)) == 7
    for field in ("title", "source", "unpacked_into"):
        assert len({getattr(benchmark, field) for benchmark in BENCHMARKS.values()}) == len(BENCHMARKS) == 4
    sources = [fact.source for rows in (TRAINING_SETS, BENCHMARKS, WEIGHT_FILES) for fact in rows.values()]
    assert len(set(sources)) == len(sources) == 7
    assert all(re.fullmatch(r"https://\S+", source) for source in sources)


def test_training_sets_name_a_pattern_that_there_is():
    assert all(training_set.pattern in FILENAME_PATTERNS for training_set in TRAINING_SETS.values())


@pytest.mark.parametrize("weight_file", WEIGHT_FILES.values(), ids=list(WEIGHT_FILES))
def test_the_folder_of_a_weight_file_is_there_with_a_page_that_names_it_and_its_source(weight_file):
    page = ((ROOT / weight_file.path).parent / "README.md").read_text()
    assert weight_file.path in page and weight_file.source in page


# --------------------------------------------------------------------------------------------------------- frozen


@pytest.mark.parametrize("fact", FACTS)
def test_a_fact_cannot_be_changed(fact):
    for field in dataclasses.fields(fact):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(fact, field.name, None)
    hash(fact)  # no lists in it


@pytest.mark.parametrize("table", TABLES.values(), ids=list(TABLES))
def test_a_table_of_facts_cannot_be_changed_and_its_keys_are_the_names(table):
    with pytest.raises(TypeError):
        table["new"] = None
    assert all(getattr(fact, "name", key) == key for key, fact in table.items())


def test_every_table_and_list_in_meta_is_of_a_kind_that_cannot_change():
    changeable = [name for name, value in vars(meta).items() if isinstance(value, (list, dict, set)) and name[0] != "_"]
    assert changeable == []


# -------------------------------------------------------------------------------------------------------- imports


def test_importing_meta_imports_neither_torch_nor_numpy():
    program = "import sys, meta; print(*{'torch', 'numpy', 'PIL', 'tyro'} & set(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == []


def test_a_users_mistake_is_a_value_error():
    assert issubclass(UserError, ValueError)
