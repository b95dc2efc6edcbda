if __name__ == "export":  # pragma: no cover - `import export` from the repository root
    raise ImportError("import infercam.export, not export: the latter would be a second copy")
