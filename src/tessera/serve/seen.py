"""Pictures in what a client says: from a `data:` URL to pixels.

Nothing is fetched: a server that follows a stranger's addresses can be sent to its own neighbours.
"""

from __future__ import annotations

import numpy as np

from tessera.data.pictures import fitted, in_url, on_white, read_picture
from tessera.data.reasons import Unreadable
from tessera.serve.errors import invalid

MOST_PICTURES = 64
"""In one request."""
_MOST_PIXELS = 1 << 20
"""Of a picture that waits to be read, so that many large ones do not fill the memory; no model here reads as many."""


def seen(url: str | None, param: str) -> np.ndarray:
    """The picture in a `data:` URL, (H, W, 3) uint8.

    Raises:
        ApiError: 400, another kind of address, broken base64, or no picture that can be read.
    """
    try:
        data = in_url(url or "")
    except ValueError:
        raise invalid("The picture is not valid base64.", param, "invalid_base64") from None
    if data is None:
        said = "A picture has to be in the request itself, as data:image/png;base64,...; addresses and files are not followed."
        raise invalid(said, param, "invalid_image_url")
    try:
        return on_white(fitted(read_picture(data, alpha=True), _MOST_PIXELS))
    except Unreadable as error:
        raise invalid(f"The picture cannot be read: {error}.", param, "invalid_image") from None
