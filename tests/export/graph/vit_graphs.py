"""Small vision transformers as ONNX graphs: weights given, so that one network can be built at any size."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto

D, HEADS, PATCH, C = 8, 2, 8, 5  # token width, attention heads, pixels, classes


class Vit:
    """Patch convolution, class tokens and registers, positions, blocks of attention and a hidden layer, a norm.

    `extra` tokens come before the patches. Weights are those of the seed, whatever size it is built at; `table` is
    the position table of the given `size`.
    """

    def __init__(self, toys, *, size=(32, 48), extra=1, blocks=2, seed=0, opset=17) -> None:
        self.toys, self.size, self.extra, self.blocks, self.opset = toys, size, extra, blocks, opset
        self.grid = (size[0] // PATCH, size[1] // PATCH)
        rng = np.random.default_rng(seed)
        self._rng = rng

        def array(*shape, scale=0.5):
            return rng.normal(0, scale, shape).astype(np.float32)

        self.w = {
            "patch": array(D, 3, PATCH, PATCH, scale=0.1),
            "patch.b": array(D),
            "class": array(1, extra, D),
        }
        for b in range(blocks):
            self.w |= {f"{b}.{k}": array(D, D) for k in ("q", "k", "v", "out", "mlp")}
            self.w |= {f"{b}.gamma": 1 + array(D), f"{b}.beta": array(D)}
        self.w |= {"gamma": 1 + array(D), "beta": array(D), "head": array(C, D), "head.b": array(C)}
        self.w |= {"head2": array(C, D), "head2.b": array(C), "wide": array(C, 2 * D)}
        self.table = array(1, extra + self.grid[0] * self.grid[1], D)

    def trunk(self, t, *, norm=True, order="first", table=None, rank=4):
        """The tokens (N, L, D) of the last block, normed or not."""
        w = self.w
        y = t.node(
            "Conv",
            "image",
            t.const(w["patch"]),
            t.const(w["patch.b"]),
            strides=[PATCH] * 2,
            name="patch_embed",
        )
        y = t.node("Reshape", y, t.const(np.array([0, D, -1])))
        y = t.node("Transpose", y, perm=[0, 2, 1])
        parts = [t.const(w["class"]), y] if self.extra else [y]
        if len(parts) > 1:
            y = t.node("Concat", *(parts if order == "first" else parts[::-1]), axis=1, name="prepend")
        y = t.node("Add", y, t.const(self.table if table is None else table), name="add_positions")
        for b in range(self.blocks):
            z = self._norm(t, y, f"{b}.gamma", f"{b}.beta")
            y = t.node("Add", y, self._attention(t, z, b, rank))
            y = t.node("Add", y, t.node("Tanh", t.node("MatMul", y, t.const(w[f"{b}.mlp"]))))
        return self._norm(t, y, "gamma", "beta") if norm else y

    def _norm(self, t, y, gamma, beta, **at):
        return t.node("LayerNormalization", y, t.const(self.w[gamma]), t.const(self.w[beta]), axis=-1, **at)

    def _attention(self, t, y, b, rank):
        """Heads in an axis of their own (rank 4), or in the batch as PyTorch's MultiheadAttention has them (rank
        3)."""
        length = self.extra + self.grid[0] * self.grid[1]
        q, k, v = (t.node("MatMul", y, t.const(self.w[f"{b}.{n}"])) for n in "qkv")
        if rank == 3:  # (N, L, D) -> (L, N, D)
            q, k, v = (t.node("Transpose", x, perm=[1, 0, 2]) for x in (q, k, v))
        shape = [1, length, HEADS, D // HEADS] if rank == 4 else [length, HEADS, D // HEADS]
        q, k, v = (t.node("Reshape", x, t.const(np.array(shape))) for x in (q, k, v))
        perm, turned = ([0, 2, 1, 3], [0, 1, 3, 2]) if rank == 4 else ([1, 0, 2], [0, 2, 1])
        q, k, v = (t.node("Transpose", x, perm=perm) for x in (q, k, v))
        weights = t.node("MatMul", q, t.node("Transpose", k, perm=turned))
        weights = t.node("Softmax", weights, axis=-1, name=f"attention{b}")
        y = t.node("Transpose", t.node("MatMul", weights, v), perm=perm)
        y = t.node("Reshape", y, t.const(np.array([1, length, D] if rank == 4 else [length, 1, D])))
        y = y if rank == 4 else t.node("Transpose", y, perm=[1, 0, 2])
        return t.node("MatMul", y, t.const(self.w[f"{b}.out"]))

    def toy(self):
        return self.toys.Toy(shape=(1, 3, *self.size), opset=self.opset)

    def classifier(self, *, after=None, take=0, **trunk) -> ModelProto:
        """Class token `take` -> `after` (t, y -> y), if given -> linear layer."""
        t = self.toy()
        y = t.node("Gather", self.trunk(t, **trunk), t.const(np.int64(take)), axis=1, name="take_class")
        y = y if after is None else after(t, y)
        return t.model(
            t.node("Gemm", y, t.const(self.w["head"]), t.const(self.w["head.b"]), transB=1, name="head")
        )

    def tokens(self, x, **trunk) -> np.ndarray:
        """The tokens (N, L, D) of pictures, one by one."""
        t = self.toy()
        model = t.model(self.trunk(t, **trunk))
        return np.concatenate([self.toys.run(model, x[i : i + 1])[0] for i in range(len(x))])

    def weights(self, x, block, **trunk) -> np.ndarray:
        """The attention (N, heads, L, L) of a block."""
        t = self.toy()
        model = t.model(self.trunk(t, **trunk))
        found = [self.toys.run(model, x[i : i + 1], f"attention{block}_out")[0] for i in range(len(x))]
        return np.stack([f.reshape(HEADS, *f.shape[-2:]) for f in found])

    def enlarged(self, size) -> Vit:
        """The same network at another size, its positions interpolated by PyTorch."""
        import torch

        other = Vit(self.toys, size=size, extra=self.extra, blocks=self.blocks, opset=self.opset)
        other.w = self.w
        rest = torch.from_numpy(self.table[:, self.extra :].reshape(1, *self.grid, D)).permute(0, 3, 1, 2)
        rest = torch.nn.functional.interpolate(rest, other.grid, mode="bicubic", align_corners=False)
        rest = rest.flatten(2).transpose(1, 2).numpy()
        other.table = np.concatenate([self.table[:, : self.extra], rest], axis=1)
        return other

    def logits(self, model, x) -> np.ndarray:
        return np.concatenate([self.toys.run(model, x[i : i + 1])[0] for i in range(len(x))])
