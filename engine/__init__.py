"""engine: images + bundle -> response maps. Never imports torch."""

if __name__ == "engine":  # pragma: no cover - `import engine` from the repository root
    raise ImportError("import infercam.engine, not engine: the latter would be a second copy")
