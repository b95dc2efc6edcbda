import typer

from infercam.benchmarks.quality.recipes import main

if __name__ == "__main__":
    typer.run(main)
