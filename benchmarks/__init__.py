if __name__ == "benchmarks":  # pragma: no cover - `import benchmarks` from the repository root
    raise ImportError("import infercam.benchmarks, not benchmarks: the latter would be a second copy")
