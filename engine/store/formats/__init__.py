"""The file formats of a map store, one module each: `npz` (ours), `psa` and `irn` (other tools')."""
