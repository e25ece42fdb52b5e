"""A driver to be killed: `python driver.py ENGINE FOLDER [ADDRESS]` runs tasks that stay for a minute."""

from shared import cli

if __name__ == "__main__":
    cli.catch_interrupts()

from faults import Fault, act  # noqa: E402

from preprocess.engines import open_engine  # noqa: E402


def main(argv):
    name, folder, *address = argv
    engine = open_engine(name, 2, *address)
    try:
        for outcome in engine.map_unordered(act, [Fault(n, "stay", folder) for n in range(4)]):
            print(outcome, flush=True)
    finally:
        engine.close()
    return 0


if __name__ == "__main__":
    cli.command(main)
