"""The registry of released data sets: the align-* commands of prepare.py, each in a file of its own with its plans."""

from data.releases.agedb import AlignAgedb
from data.releases.cacd import AlignCacd, AlignCacdVs
from data.releases.calfw import AlignCalfw
from data.releases.fgnet import AlignFgnet
from data.releases.flags import Align
from data.releases.morph2 import AlignMorph2

ALIGN_COMMANDS: dict[str, type[Align]] = {
    "fgnet": AlignFgnet,
    "morph2": AlignMorph2,
    "calfw": AlignCalfw,
    "cacd-vs": AlignCacdVs,
    "agedb": AlignAgedb,
    "cacd": AlignCacd,
}
