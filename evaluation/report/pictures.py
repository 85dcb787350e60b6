"""The pictures of the worst errors, as the report shows them."""

import io
from collections.abc import Callable, Mapping

from PIL import Image

from data.benchmarks import EvalSet
from data.faces import Faces
from meta import UserError


def picture_reader(opened_sets: Mapping[str, EvalSet]) -> Callable[[str, str], bytes | None]:
    """Returns the JPEG of a picture by setting and name, None where it can't be read."""
    places: dict[str, dict[str, tuple[Faces, int]]] = {}

    def read(setting: str, name: str) -> bytes | None:
        if setting not in places:
            opened = opened_sets[setting]
            places[setting] = {
                opened.name(faces, i): (faces, i) for faces, _ in opened.sides for i in range(len(faces))
            }
        if name not in places[setting]:
            return None
        faces, i = places[setting][name]
        try:
            pixels = faces.decode(i).permute(1, 2, 0).numpy()
        except UserError:
            return None
        packed = io.BytesIO()
        Image.fromarray(pixels).save(packed, "JPEG", quality=85)
        return packed.getvalue()

    return read
