import typer

from infercam.benchmarks.gpu.measure import main
from infercam.engine.common.errors import InfercamError

if __name__ == "__main__":
    try:
        typer.run(main)
    except InfercamError as e:
        typer.echo(f"error: {e}", err=True)
        raise SystemExit(1) from None
