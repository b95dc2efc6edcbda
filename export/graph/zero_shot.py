"""Zero-shot maps of an image encoder with a class token, as CLIP's: MaskCLIP's value path, as plain ONNX nodes.

(Zhou, Loy, Dai, "Extract Free Dense Labels from CLIP", ECCV 2022, section 3.2.) In the last block every token takes
its own value instead of an average over all (its attention is the identity); residual, hidden layer, norm and
projection are the encoder's. Each patch so has an embedding of its own, to be compared with the texts:

    response_c = softmax over k of (scale * cos(patch, text_k)), at c     (N, C, h, w), in 0..1
    scores_c   = scale * cos(image, text_c)                               (N, C)

The softmax is over all classes and the background's texts, whose channels are then dropped: where a background text
fits best every class is low. The scores are of the encoder's own embedding, and the background takes no part in them.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto

from infercam.engine.common.errors import ExportError
from infercam.export.graph.attention import reduced, self_attentions
from infercam.export.graph.building import NodeBuilder, patch_tokens, sliced
from infercam.export.graph.customary import head_over, rows_to_map
from infercam.export.graph.head import Head
from infercam.export.graph.index import Graph, fresh_name, label
from infercam.export.graph.wishes import ZeroShot

_LENGTHS = ("ReduceL2", "Sqrt")


def embedding(graph: Graph, output: str) -> str:
    """The tensor before a closing division by its own length, which cosines do not see, or `output` itself."""
    node = graph.producer.get(output)
    if node is not None and node.op_type == "LpNormalization":
        return str(node.input[0])
    if node is not None and node.op_type == "Div":
        makers = {o for n in graph.ancestors(node.input[1]) for o in n.output}
        if node.input[0] in makers and any(n.op_type in _LENGTHS for n in graph.ancestors(node.input[1])):
            return str(node.input[0])
    return output


def write_zero_shot(build: NodeBuilder, head: Head, wish: ZeroShot, response: str, scores: str) -> None:
    """Add the nodes that make both outputs of `head`'s embedding. Raises ExportError where there is no class token or
    no attention to replace, or where the texts have another width."""
    width = len(head.bias)
    if width != wish.texts.shape[1]:
        raise ExportError(f"the image embeddings have {width} numbers, the texts {wish.texts.shape[1]}")
    if head.is_exact or len(head.poolings) > 1:
        raise ExportError(
            f"{label(head.poolings[0].node)}: the image encoder pools by other means than one class token; of ONNX "
            "files only ViTs are taken (a ResNet's attention pool: from its open_clip model)"
        )
    p = head.poolings[0]
    tokens = value_tokens(build, p.features)
    patches = head_over(build, head, patch_tokens(build, p, tokens))
    texts = (wish.scale * wish.texts).astype(np.float32).T
    logits = _compared(build, patches, texts)
    chances = build.node("Softmax", [logits], build.tensor("zero_shot.chances"), axis=1)
    kept = chances if wish.wanted == len(wish.texts) else sliced(build, chances, 1, 0, wish.wanted)
    rows_to_map(build, kept, p, wish.wanted, response)
    shape = build.constant(np.array([-1, width], np.int64), "zero_shot.shape")
    image = build.node("Reshape", [head.logits, shape], build.tensor("zero_shot.image"))
    _compared(build, image, texts[:, : wish.wanted], scores)


def _compared(build: NodeBuilder, rows: str, texts: np.ndarray, out: str = "") -> str:
    """Rows (M, E), made unit vectors, times texts (E, K)."""
    length = reduced(build, "ReduceL2", rows, 1, keep=True)
    unit = build.node("Div", [rows, length], build.tensor("zero_shot.unit"))
    weight = build.constant(np.ascontiguousarray(texts), "zero_shot.texts")
    return build.node("MatMul", [unit, weight], out or build.tensor("zero_shot.logits"))


def value_tokens(build: NodeBuilder, tokens: str) -> str:
    """`tokens` (N, L, D) as they would be if in the last block each token attended to itself alone."""
    graph = Graph(build.model)
    found = self_attentions(graph, tokens)
    if not found:
        raise ExportError(f"no self-attention over the tokens '{tokens}': this is no vision transformer")
    product = _product(graph, found[-1])
    names = {product.output[0]: str(product.input[1])}
    before = {id(n) for n in graph.ancestors(tokens)}
    for node in list(graph.proto.node):
        if id(node) in before and any(i in names for i in node.input):
            copy = NodeProto()
            copy.CopyFrom(node)
            copy.input[:] = [names.get(i, i) for i in node.input]
            for i, name in enumerate(node.output):
                copy.output[i] = names[name] = fresh_name(build.model, f"{name}.values")
            copy.name = f"infercam/{copy.output[0]}"
            build.model.graph.node.append(copy)
    return names[tokens]


def _product(graph: Graph, softmax: NodeProto) -> NodeProto:
    """The product of attention weights and values."""
    weights = softmax.output[0]
    for node in graph.proto.node:
        if node.op_type in ("Identity", "Dropout", "Cast") and node.input[0] == weights:
            weights = node.output[0]
        elif node.op_type == "MatMul" and node.input[0] == weights:
            return node
    raise ExportError(f"{label(softmax)}: no product of these attention weights with values")
