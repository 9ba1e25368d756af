"""Remake the pictures of tracks, from the sample clip Big Buck Bunny: `python docs/make_pictures.py`."""

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from mme_hf.data import load_sample_records
from mme_hf.drawing import in_few_colors

FOLDER = Path(__file__).parent
SCRIPT = FOLDER.parent / "examples" / "visualize_motion.py"
STEM = "bigbuckbunny"


def make(folder: Path, kind: str, *options: str) -> Path:
    """Run the script on the clip and return the picture of tracks of a kind, "gif" or "png"."""
    (video,) = (row["video"]["path"] for row in load_sample_records().dataset if STEM in row["video"]["path"])
    subprocess.run([sys.executable, SCRIPT, video, "--output_dir", folder, "--start", "1.36", *options], check=True)
    return folder / f"{STEM}_tracks.{kind}"


def main() -> None:
    """Write tracks.gif and tracks.png beside this file: short and small, for a page that loads fast."""
    with tempfile.TemporaryDirectory() as name:
        animation = make(Path(name), "gif", "--num_frames", "6", "--width", "640")
        (FOLDER / "tracks.gif").write_bytes(animation.read_bytes())
        with Image.open(make(Path(name), "png", "--num_frames", "4")) as sheet:
            in_few_colors([sheet])[0].save(FOLDER / "tracks.png", optimize=True)


if __name__ == "__main__":
    main()
