"""How long ``--help`` takes, against a bare LightningCLI's.

    python benchmarks/startup.py [--rounds 5]

Runs each command in a new process, in turn, and prints medians, ranges and the median ratio.
"""

import argparse
import statistics
import subprocess
import sys
import time

BARE = "from lightning.pytorch.cli import LightningCLI; LightningCLI()"
OURS = "from lightning_compress.cli.main import main; main()"
COMMANDS = {
    "bare LightningCLI --help": [BARE, "--help"],
    "lightning-compress --help": [OURS, "--help"],
    "bare LightningCLI fit --help": [BARE, "fit", "--help"],
    "lightning-compress fit --help": [OURS, "fit", "--help"],
}


def seconds(code, *arguments):
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True)
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    times = [{name: seconds(*command) for name, command in COMMANDS.items()} for _ in range(rounds)]
    for name in COMMANDS:
        taken = [row[name] for row in times]
        print(f"{name:32} {statistics.median(taken):5.1f} s [{min(taken):.1f}, {max(taken):.1f}]")
    for command in ("--help", "fit --help"):
        ours, bare = f"lightning-compress {command}", f"bare LightningCLI {command}"
        ratios = [row[ours] / row[bare] for row in times]
        spread = f"[{min(ratios):.2f}, {max(ratios):.2f}]"
        print(f"ratio of {command}: {statistics.median(ratios):.2f} {spread}")


if __name__ == "__main__":
    main()
