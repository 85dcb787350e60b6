"""The registry of prepare.py's align commands, for photographs and released data sets, each in a file of its own."""

from data.releases.agedb import AlignAgedb
from data.releases.cacd import AlignCacd, AlignCacdVs
from data.releases.calfw import AlignCalfw
from data.releases.fgnet import AlignFgnet
from data.releases.morph2 import AlignMorph2
from data.releases.photographs import AlignPhotographs

ALIGN_COMMANDS: dict[str, type] = {
    "align": AlignPhotographs,
    "align-fgnet": AlignFgnet,
    "align-morph2": AlignMorph2,
    "align-calfw": AlignCalfw,
    "align-cacd-vs": AlignCacdVs,
    "align-agedb": AlignAgedb,
    "align-cacd": AlignCacd,
}
