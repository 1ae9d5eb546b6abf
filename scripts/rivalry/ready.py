"""`python -m rivalry.ready OUT`: decodes the images, writes what both sides hold to."""

import sys
from pathlib import Path

from rivalry import images, ours, protocol

ABSENT = 3


def main(out: Path) -> int:
    """`ABSENT` where the files are."""
    missing = [n.file for n in protocol.NETS.values() if not _there(n.file)]
    if missing:
        print(f"left out: no {missing} in {protocol.WEIGHTS}", file=sys.stderr)
        return ABSENT
    try:
        data = images.load(out)
    except images.Absent as absent:
        print(absent, file=sys.stderr)
        return ABSENT
    ours.write_answers(out, data)
    return 0


def _there(file: str) -> bool:
    return (protocol.WEIGHTS / file).exists()


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
