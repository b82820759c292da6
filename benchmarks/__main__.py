"""`python -m benchmarks NAME [--json -]`: run one benchmark and print its table, or one JSON object.

With `--json FILE` the object goes to a file; with `--json -` it is the last line of standard output.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib import import_module
from pathlib import Path

BENCHMARKS = {
    "cubes": "2,000 random cubes from a chunked volume: ours, zarr, Dask, tensorstore, memmap",
    "out_of_core": "C-PIC's forward pass on procedural volumes from 256^3 to 8192^3",
}


def main() -> int:
    """Run the benchmark that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=BENCHMARKS, metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument(
        "--json", metavar="FILE", help="write one JSON object instead of a table; - is stdout"
    )
    options = parser.parse_args()
    module = import_module(f"benchmarks.{options.name}")
    result = module.run()
    if options.json is None:
        module.show(result)
        return 0
    document = json.dumps(result, allow_nan=False)
    if options.json == "-":
        print(document, flush=True)
    else:
        Path(options.json).write_text(document + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
