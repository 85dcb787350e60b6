"""The most common picture of training sets, a plain JPEG of 112x112, decoded without PIL's work around it.

PIL opens a picture, reads its header and loads it block by block: for one of this size that takes as long as decoding
does. Its decoder alone, given the whole file, gives the same pixels. For anything else `decode_aligned` gives None and
data.transforms.decode_face takes over.

torchvision.io.decode_jpeg gives the same pixels too, and faster still (by a fourth). It is not used: torchvision marks
it as deprecated since 0.29, and it writes libjpeg's warnings of damaged pictures to stderr without naming the picture.
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from meta import IMAGE_SIZE

MAX_BYTES = 1 << 17  # of a file that is tried: noise at quality 100, the worst 112x112 JPEG, has less than half of that
START = b"\xff\xd8\xff"
BASELINE_FRAME, START_OF_SCAN = 0xC0, 0xDA
# Tables, restart interval, comment, and the applications' segments but Adobe's (0xEE), which may say that the three
# channels are no YCbCr. Any other marker is left to PIL.
PLAIN_SEGMENTS = frozenset((0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xEE), 0xEF))
FRAME = bytes((8, 0, IMAGE_SIZE, 0, IMAGE_SIZE, 3))  # 8 bits, height, width, three channels


def decode_aligned(picture: bytes) -> Tensor | None:
    """uint8 (3, 112, 112) of a sound baseline JPEG of that size in colour; None for everything else."""
    if not is_aligned_jpeg(picture):
        return None
    try:
        decoded = Image.frombytes("RGB", (IMAGE_SIZE, IMAGE_SIZE), picture, "jpeg", "RGB", "")
    except (OSError, ValueError):  # damaged: decode_face has the words for it
        return None
    # asarray: its bytes are a new copy already, (112, 112, 3)
    return torch.from_numpy(np.ascontiguousarray(np.asarray(decoded).transpose(2, 0, 1)))  # (3, 112, 112)


def is_aligned_jpeg(picture: bytes) -> bool:
    """Whether the header, read to its end, is that of a baseline JPEG of 112x112 pixels in three channels.

    So the size is known before anything is allocated, and a header that PIL would refuse does not get past it.
    """
    if len(picture) > MAX_BYTES or not picture.startswith(START):
        return False
    position, has_frame = 2, False
    while position + 4 <= len(picture) and picture[position] == 0xFF:
        marker = picture[position + 1]
        if marker == START_OF_SCAN:
            return has_frame
        if marker == BASELINE_FRAME and not has_frame:
            has_frame = picture[position + 4 : position + 10] == FRAME
            if not has_frame:
                return False
        elif marker not in PLAIN_SEGMENTS:
            return False
        position += 2 + (picture[position + 2] << 8 | picture[position + 3])
    return False
