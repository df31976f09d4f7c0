"""The entry point: ``lightning-compress fit | validate | test | predict | benchmark | export``."""

import argparse
import logging
import signal
import sys

from lightning_compress.errors import InputError
from lightning_compress.stopping import exit_status, stop

COMMANDS = {
    "fit": "train, compress, test and report; --config FILE is a whole recipe",
    "validate": "measure a checkpoint on the validation split",
    "test": "measure a checkpoint on the test split and report",
    "predict": "write the predictions of a checkpoint to a file",
    "benchmark": "measure a saved model, ours or any Hugging Face one, without training",
    "export": "write a saved model for ONNX Runtime, OpenVINO, ExecuTorch, TensorRT or AOTInductor",
}


# transformers imports torchao if installed, which logs warnings about kernels for other machines.
_TALKATIVE = ("torchao", "torch.utils._pytree")


def main() -> None:
    """Run the command line; a user's mistake or Ctrl-C ends in a clear line, not in a traceback."""
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, stop)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        if command == "benchmark":
            from lightning_compress.cli.benchmark import run_benchmark

            run_benchmark(sys.argv[2:])
        elif command == "export":
            from lightning_compress.cli.export import run_export

            run_export(sys.argv[2:])
        elif command in COMMANDS:
            from lightning_compress.cli.trainer import TargetNotReachedError, run_trainer

            try:
                run_trainer()
            except TargetNotReachedError as error:
                sys.exit(f"error: {error}")
            except SystemExit as end:  # how Lightning ends a run that a signal has stopped
                if isinstance(end.__context__, KeyboardInterrupt):
                    sys.exit(exit_status(end.__context__))
                raise
        else:
            _overview().parse_args()
    except ValueError as error:
        from lightning_compress.cli.mistakes import as_line, one_line

        mistake = _mistake_behind(error)
        if mistake is None and "Does not validate against any" not in str(error):
            raise
        told = one_line(str(error)) if mistake is None else str(mistake)
        sys.stderr.write(f"error: {as_line(told)}\n")
        sys.exit(2)
    except KeyboardInterrupt as stopped:
        sys.stderr.write("\ninterrupted\n")
        sys.exit(exit_status(stopped))


def _mistake_behind(error: BaseException | None) -> InputError | None:
    """The user's mistake that led to an error: the parser wraps errors of the classes it builds."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__ or error.__context__
    return error


def _overview() -> argparse.ArgumentParser:
    """What is printed without a command: nothing heavy is imported for it."""
    parser = argparse.ArgumentParser(
        prog="lightning-compress",
        description="Make a Hugging Face transformer small and fast, and prove it.",
        epilog="Start with: lightning-compress fit --config configs/quickstart.yaml. "
        "Every command explains itself with --help.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        commands.add_parser(name, help=text)
    return parser
