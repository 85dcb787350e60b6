"""Facts: data sets, file names, age groups, benchmarks, weight files, input. No torch, nothing computed from data.

`UserError` stands here because every room raises it.
Source: Xie, Pun, Lam, IEEE TIFS 17, 2022, 399-412, and its published scripts (github.com/JeffersonXie/IEFP).
"""

import bisect
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType


class UserError(ValueError):
    """A mistake of the user's: its message is one sentence saying what is wrong, where, and what to do.

    Scripts print the message and leave with status 2. Any other exception is a mistake of ours and keeps its traceback.
    """


# ---------------------------------------------------------------------------------------------------------- input

IMAGE_SIZE = 112  # pixels, both sides
PIXEL_MEAN = 127.5  # (x - 127.5) / 127.5 maps 0..255 to [-1, 1]: mean 0.5 and std 0.5 of the [0, 1] range
PIXEL_SCALE = 127.5
PREPROCESSING = 1  # rises when decoding or resizing gives the networks other pixels of the same file
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")  # compared in lower case
PHOTO_EXTENSIONS = (*IMAGE_EXTENSIONS, ".tif", ".tiff", ".gif", ".avif", ".heic", ".heif")  # before they are aligned
EMBEDDING_SIZE = 512

# ----------------------------------------------------------------------------------------------------------- ages

AGE_GROUP_UPPER_EDGES = (12, 18, 25, 35, 45, 55, 65)  # years, inclusive
AGE_GROUP_NAMES = ("0-12", "13-18", "19-25", "26-35", "36-45", "46-55", "56-65", "66+")
NUM_AGE_GROUPS = len(AGE_GROUP_NAMES)
AGE_GROUP_MIDDLES = (6, 16, 22, 31, 41, 51, 61, 72)  # years; of the last group, which has no end, a guess
MIN_AGE, MAX_AGE = 0, 120  # years; anything else in a file name is a mistake


def age_group(age: int) -> int:
    """Index 0..7 of the age group that holds `age` (years)."""
    return bisect.bisect_left(AGE_GROUP_UPPER_EDGES, age)


@dataclass(frozen=True)
class FilenamePattern:
    """Where a data set keeps the age in a base name: the name is split at `separators`, the age is part `position`."""

    name: str
    separators: str  # regular expression
    position: int
    example: str


FILENAME_PATTERNS = MappingProxyType(
    {
        pattern.name: pattern
        for pattern in (
            FilenamePattern("ms1mv3", r"_|\.", 2, "05179510_age_39.jpg"),
            FilenamePattern("fgnet", r"A|\.|a|b", 1, "001A02.JPG or 001A43a.JPG"),
            FilenamePattern("morph2", r"M|F|\.", 1, "009055_1M54.JPG"),
            FilenamePattern("utkface", r"_(?=\d_)", 0, "34_1_0_20170109004755204.jpg.chip.jpg"),
        )
    }
)

# ------------------------------------------------------------------------------------------------------ data sets

FACE_DATASET_FOLDER = "face_dataset"


@dataclass(frozen=True)
class TrainingSet:
    """One folder per identity, ages in the file names."""

    name: str
    folder: str  # below face_dataset/
    pattern: str
    num_identities: int
    num_images: int
    source: str
    how_to_get: str


TRAINING_SETS = MappingProxyType(
    {
        "ms1mv3": TrainingSet(
            name="ms1mv3",
            folder="ms1mv3_256times256_with_age",
            pattern="ms1mv3",
            num_identities=93431,
            num_images=5_179_510,
            source="https://github.com/deepinsight/insightface/tree/master/recognition/_datasets_",
            how_to_get="MS1MV3 (MS1M-RetinaFace), one folder per identity, each image renamed from 05179510.jpg to "
            "05179510_age_39.jpg with its age",
        )
    }
)


@dataclass(frozen=True)
class Benchmark:
    """A published benchmark: its protocol, its folders below face_dataset/ and where it can be had."""

    name: str
    title: str
    protocol: str  # "leave_one_out", "probe_gallery", "ten_fold_verification" or "all_impostors"
    folders: tuple[str, ...]
    pattern: str | None  # of the ages in its file names
    source: str
    unpacked_into: str  # below face_dataset/
    subject_counts: tuple[int, ...] = ()  # MORPH2's settings
    pair_lists: tuple[str, ...] = ()  # accepted places, first the one where the folder is described
    pair_rule: Callable[[], list[tuple[str, str, bool]]] | None = None  # the pairs where there is no list
    num_pairs: int = 0
    num_identities: int = 0  # of the published set; 0 where it is not compared
    num_images: int = 0
    names_hold_people: bool = False  # Aaron_Eckhart_0001.jpg
    notes: str = ""

    @property
    def set_names(self) -> tuple[str, ...]:
        """What its results are called: the benchmark's name, or one with each number of subjects."""
        return tuple(f"{self.name}_{count}" for count in self.subject_counts) or (self.name,)

    @property
    def align_command(self) -> str:
        """What makes its folders of the pictures as they were released."""
        return f"python prepare.py align-{self.name.replace('_', '-')}"


_benchmarks: dict[str, Benchmark] = {}
BENCHMARKS = MappingProxyType(_benchmarks)


def register_benchmark(benchmark: Benchmark) -> None:
    """Adds an entry to BENCHMARKS, from which flags, checks, `prepare.py check` and the report take what there is."""
    if benchmark.name in BENCHMARKS:
        raise ValueError(f"the benchmark {benchmark.name!r} is registered twice")
    _benchmarks[benchmark.name] = benchmark


def benchmarks_by_protocol(protocol: str) -> tuple[str, ...]:
    """The names of the benchmarks of a protocol."""
    return tuple(name for name, benchmark in BENCHMARKS.items() if benchmark.protocol == protocol)


CACD_VS_PAIRS_PER_HALF_FOLD = 200  # label 1 where (NNNN div 200) is even


def cacd_vs_pairs() -> list[tuple[str, str, bool]]:
    """(name, name, genuine) of the 4,000 pairs of CACD-VS. Source: the published evaluation."""
    return [
        (f"{number:04d}_0.jpg", f"{number:04d}_1.jpg", number // CACD_VS_PAIRS_PER_HALF_FOLD % 2 == 0)
        for number in range(4000)
    ]


register_benchmark(
    Benchmark(
        name="fgnet",
        title="FG-NET",
        protocol="leave_one_out",
        folders=("ID_processed_FGNET",),
        pattern="fgnet",
        source="https://drive.google.com/file/d/1A2MHRUkNlIk5l7grDRY84vZ8egT4UGXN/view",
        unpacked_into="ID_processed_FGNET",
        num_identities=82,
        num_images=1_002,
        notes="82 identities, 1,002 images, one folder per identity",
    )
)
register_benchmark(
    Benchmark(
        name="morph2",
        title="MORPH2",
        protocol="probe_gallery",
        folders=tuple(
            f"ID_processed_morph2_2/{side}_{count}" for count in (3000, 10000) for side in ("probe", "gallery")
        ),
        pattern="morph2",
        source="https://drive.google.com/file/d/1P6bEBCax0P7GcfwGlZu4aFpioX16cZI9/view",
        unpacked_into="ID_processed_morph2_2",
        subject_counts=(3000, 10000),
        notes="per subject the youngest image in gallery_N, the oldest in probe_N, one folder per subject",
    )
)
register_benchmark(
    Benchmark(
        name="cacd_vs",
        title="CACD-VS",
        protocol="ten_fold_verification",
        folders=("CACD_VS/processed_CACDVS_2",),
        pattern=None,
        source="https://drive.google.com/file/d/1XldmKL8s8_nR5Owxdcrq5ZGM0PJiP-_s/view",
        unpacked_into="CACD_VS",
        pair_lists=("CACD_VS/txt/CACD_VS_pairs_labels.txt", "CACD_VS/CACD_VS_pairs_labels.txt"),
        pair_rule=cacd_vs_pairs,
        num_pairs=4000,
        notes="4,000 pairs NNNN_0.jpg NNNN_1.jpg, ten folds of 200 genuine then 200 impostor pairs",
    )
)
register_benchmark(
    Benchmark(
        name="calfw",
        title="CALFW",
        protocol="ten_fold_verification",
        folders=("CALFW/processed_CALFW_2",),
        pattern=None,
        source="https://drive.google.com/file/d/1nuW8g2irSJFFrOG32_J3xRaOXZxHe62R/view",
        unpacked_into="CALFW",
        pair_lists=("CALFW/txts/CALFW_img_pairs_labels.txt", "CALFW/CALFW_img_pairs_labels.txt"),
        num_pairs=6000,
        names_hold_people=True,
        notes="6,000 pairs, ten folds of 300 genuine then 300 impostor pairs",
    )
)

# --------------------------------------------------------------------------------------------------- weight files


@dataclass(frozen=True)
class WeightFile:
    """A published weight file: where it goes and where it can be had."""

    path: str  # below the top of this project
    source: str
    holds: str


WEIGHT_FILES = MappingProxyType(
    {
        "age": WeightFile(
            path="pretrained_age_estimation_models/ms1mv3_AgeDB_iresnet50_ae_1.pth",
            source="https://drive.google.com/file/d/1h77KtVKgoUdOtErBWRhdb4gdgZUCOtgd/view",
            holds="age branch, iresnet50, purification unit of scale 1, trained on MS1MV3 and AgeDB",
        ),
        "iefp": WeightFile(
            path="pretrained_IEFP_models/ms1mv3_iresnet50_IEFP.pth",
            source="https://drive.google.com/file/d/14ja6v_0ZkgcCtUYDSvTwJX2c2Z8oVkEW/view",
            holds="the whole IEFP model, iresnet50, purification unit of scale 1, 93,431 identities of MS1MV3",
        ),
    }
)

# ---------------------------------------------------------------------------------------------- published figures


@dataclass(frozen=True)
class PublishedFigure:
    """What a paper reports, in percent, under the name that the paper gives the setting."""

    method: str
    benchmark: str  # a key of BENCHMARKS, or "lfw", "agedb_30"
    setting: str
    value_percent: float
    source: str
    protocol: str | None = None  # the protocol and figure of ours that measure the same, None where the set is not ours
    figure: str | None = None


_OE_CNN = "Wang et al., Orthogonal Deep Features Decomposition for Age-Invariant Face Recognition, ECCV 2018"
_DAL = "Wang et al., Decorrelated Adversarial Learning for Age-Invariant Face Recognition, CVPR 2019"
_AIM = "Zhao et al., Look Across Elapse: Disentangled Representation Learning and Photorealistic Cross-Age Face " \
       "Synthesis for Age-Invariant Face Recognition, AAAI 2019"  # fmt: skip
_MAGFACE = "Meng et al., MagFace: A Universal Representation for Face Recognition and Quality Assessment, CVPR 2021"
_RANK1 = {"protocol": "probe_gallery", "figure": "rank1_percent"}
_LEAVE_ONE_OUT = {"protocol": "leave_one_out", "figure": "rank1_percent"}
_ACCURACY = {"protocol": "verification", "figure": "accuracy_percent"}
_OF_BINS = {"protocol": "insightface_accuracy", "figure": "accuracy_flip_percent"}  # as most papers measure these sets

PUBLISHED_FIGURES = (
    PublishedFigure("OE-CNN", "morph2", "MORPH Album 2, 10,000 subjects, rank-1", 98.55, _OE_CNN, **_RANK1),
    PublishedFigure("OE-CNN", "morph2", "MORPH Album 2, 3,000 subjects, rank-1", 98.67, _OE_CNN, **_RANK1),
    PublishedFigure("OE-CNN", "cacd_vs", "CACD-VS, accuracy", 99.2, _OE_CNN, **_ACCURACY),
    PublishedFigure("OE-CNN", "lfw", "LFW, accuracy", 99.35, _OE_CNN, **_OF_BINS),
    PublishedFigure("DAL", "fgnet", "FG-NET, leave-one-out, rank-1", 94.5, _DAL, **_LEAVE_ONE_OUT),
    PublishedFigure("DAL", "cacd_vs", "CACD-VS, accuracy", 99.4, _DAL, **_ACCURACY),
    PublishedFigure("DAL", "lfw", "LFW, accuracy", 99.47, _DAL, **_OF_BINS),
    PublishedFigure("AIM + CAFR", "morph2", "MORPH Album2, Setting-1, rank-1", 99.65, _AIM, **_RANK1),
    PublishedFigure("AIM + CAFR", "morph2", "MORPH Album2, Setting-2, rank-1", 99.26, _AIM, **_RANK1),
    PublishedFigure("AIM", "fgnet", "FG-NET, leave-one-out, rank-1", 93.20, _AIM, **_LEAVE_ONE_OUT),
    PublishedFigure("AIM + CAFR", "cacd_vs", "CACD-VS, accuracy", 99.76, _AIM, **_ACCURACY),
    PublishedFigure("MagFace (a general model)", "calfw", "CALFW, accuracy", 96.15, _MAGFACE, **_OF_BINS),
    PublishedFigure("MagFace (a general model)", "agedb_30", "AgeDB-30, accuracy", 98.17, _MAGFACE, **_OF_BINS),
)

# ---------------------------------------------------------------------------------- what a figure has to stand on

MIN_FALSE_ACCEPTS = 1  # that a false-accept rate allows, or there is no figure at it: FAR 1e-2 needs 100 impostor pairs

# ----------------------------------------------------------------------------------------------------------- paper

CITATION = (
    'Jiu-Cheng Xie, Chi-Man Pun, Kin-Man Lam, "Implicit and Explicit Feature Purification for Age-invariant Facial '
    'Representation Learning", IEEE Transactions on Information Forensics and Security 17, 2022, 399-412.'
)
