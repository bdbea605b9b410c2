"""Images as JPEG makes them, to see what a compression costs the networks that learn from them.

    python benchmarks/recompress.py cifar10 FOLDER [--quality 75] [--shift 4]

Reads a Parquet set (`train-*.parquet`, `test-*.parquet`, images in the column `img`), sends every image through JPEG
with colour at half the resolution (4:2:0), and writes the same set with what came out, as PNG, to FOLDER. JPEG's blocks
lie `--shift` pixels off: where the images are JPEGs already, with blocks at 0, another pass over the same blocks would
change next to nothing, while one over shifted blocks does to them what the first did to their originals, or less.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def main() -> None:
    """Read, compress, write; print how far pixels moved."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--quality", type=int, default=75)
    parser.add_argument("--shift", type=int, default=4)
    options = parser.parse_args()
    options.target.mkdir(parents=True)
    for path in sorted(options.source.glob("*.parquet")):
        table = pq.read_table(path)
        images, errors = [], []
        for row in table.column("img").to_pylist():
            before = np.asarray(Image.open(io.BytesIO(row["bytes"])).convert("RGB"))
            after = compressed(before, options.quality, options.shift)
            errors.append(float(np.square(after - before.astype(float)).mean()))
            images.append({"bytes": png(after), "path": None})
        column = pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
        pq.write_table(pa.table({"img": column, "label": table.column("label")}), options.target / path.name)
        print(f"{path.name}: {len(images)} images, root mean square change {np.sqrt(np.mean(errors)):.1f} of 255")


def compressed(pixels: np.ndarray, quality: int, shift: int) -> np.ndarray:
    """Return uint8 [H, W, 3] as JPEG gives it back, its blocks beginning `shift` pixels down and right."""
    moved = np.pad(pixels, ((shift, 0), (shift, 0), (0, 0)), mode="reflect") if shift else pixels
    file = io.BytesIO()
    Image.fromarray(moved).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return np.asarray(Image.open(file))[shift:, shift:]


def png(pixels: np.ndarray) -> bytes:
    """Return a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


if __name__ == "__main__":
    main()
