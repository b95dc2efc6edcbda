if __name__ == "trainer":  # pragma: no cover - `import trainer` from the repository root
    raise ImportError("import infercam.trainer, not trainer: the latter would be a second copy")
