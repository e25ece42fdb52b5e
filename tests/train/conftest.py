"""A small recipe, random views, and the slow oracle of a training step: one process, float64, plain loops."""

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

RECIPE = {
    "sampling": {"clip": "8x2", "size": 24, "ta": False, "ta_probability": 1.0, "ta_scope": "half", "sa": False,
                 "sa_variant": "paper", "area_min": 0.2, "area_max": 1.0, "aspect_min": 0.75, "aspect_max": 1.33,
                 "cover": 0.8, "keys": 3},
    "augment": {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, "jitter_p": 0.0, "grey_p": 0.0,
                "blur_p": 0.0, "blur_min": 0.1, "blur_max": 2.0, "flip_p": 0.5},
    "model": {"backbone": "r2plus1d_tiny", "width": 4, "hidden": 12, "dim": 8, "precision": "float32"},
    "contrast": {"inter": 1.0, "intra": 1.0, "order": "epoch", "queue": 40, "temperature": 0.1, "momentum": 0.9,
                 "bn": "auto", "bn_group": 4, "exclude_same_video": False},
    "alignment": {"variant": "v3", "st": True, "s": True, "t": True, "form": "renormalised", "weight": 1.0,
                  "weights_per_step": False, "double_epochs": 0, "layer": "conv"},
    "optimise": {"epochs": 10, "steps": 0, "batch": 8, "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0,
                 "warmup_epochs": 0, "warmup_from": 0.01, "seed": 5},
}

MACLR = {
    "motion_input": "edges", "motion_clip": "8x2", "motion_backbone": "slow_tiny", "motion_width": 1, "edges_max": 10.0,
    "flow_max": 20.0, "vm": True, "mv": True, "mm": False, "cross_weight": 0.5, "pairs": "same", "shared_heads": False,
    "shift_min_s": 0.5, "shift_max_s": 10.0,
}
BASE = {"sampling.keys": 1, "sampling.clip": "4x4", "model.backbone": "slow_tiny", "model.width": 2,
        "contrast.intra": 0.0, "contrast.order": 0.0, "contrast.queue": 20, "alignment.variant": "none"}


@pytest.fixture(scope="session")
def make_recipe():
    """make_recipe({"contrast.queue": 24, ...}) -> Pretraining: RECIPE with the given settings; with any of `maclr.`, or
    maclr=True, MaCLR's small recipe."""
    from shared.recipes.pretraining import build_recipe

    def make(settings=(), maclr=False):
        tree, settings = copy.deepcopy(RECIPE), dict(settings)
        if maclr or any(key.startswith("maclr.") for key in settings):
            tree["maclr"], settings = dict(MACLR), BASE | settings
        for key, value in dict(settings).items():
            section, _, name = key.partition(".")
            assert name in vars(getattr(build_recipe(tree), section)), key       # settings that came later as well
            tree[section][name] = value
        return build_recipe(tree)
    return make


@pytest.fixture(scope="session")
def make_views():
    """make_views(recipe, seed) -> Views of the global batch in float64: noise, and two videos that come up often."""
    from shared.clips.views import Views
    from shared.nn.backbones import build_backbone

    def make(recipe, seed, dtype=torch.float64):
        rng = torch.Generator().manual_seed(seed)
        batch, size = recipe.optimise.batch, recipe.sampling.size
        length = recipe.sampling.geometry.length
        shape = build_backbone(recipe.model.backbone, recipe.model.width).h_shape(length, size)[1:]
        clips = torch.randn(1 + recipe.sampling.keys, batch, 3, length, size, size, generator=rng, dtype=dtype)
        motion = torch.rand(batch, *shape, generator=rng, dtype=dtype) ** 3
        motion[seed % batch] = 0                                                  # a still clip in every batch
        second = None
        if recipe.maclr and recipe.maclr.reads:
            frames = recipe.maclr.geometry.length
            second = tuple(torch.rand(2, batch, 3, frames, size, size, generator=rng, dtype=dtype))
        return Views(motion_clips=second, query=clips[0], keys=tuple(clips[1:]), motion=motion,
                     ids=torch.randint(0, 2 * batch, (batch,), generator=rng),
                     order=torch.randint(0, 2, (batch,), generator=rng))
    return make


@pytest.fixture(scope="session")
def make_learner():
    """make_learner(recipe, world) -> a Learner, or MaCLR for its recipes, in float64; its weights are a function of
    the recipe's seed."""
    from shared.nn.backbones import build_backbone
    from shared.nn.distributed import World
    from train.maclr import MaCLR
    from train.moco import Learner

    def make(recipe, world=World(), dtype=torch.float64):
        torch.manual_seed(recipe.optimise.seed)
        method = MaCLR if recipe.maclr else Learner
        return method(lambda: build_backbone(recipe.model.backbone, recipe.model.width), recipe, world).to(dtype)
    return make


class Oracle:
    """Steps of the global batch in one process: BN by chunks of `group` rows, every sum a loop, the queue a list."""

    def __init__(self, learner, recipe, ranks):
        from shared.nn.backbones import build_backbone

        self.recipe, self.ranks = recipe, ranks
        self.mode, self.group = learner.shuffle.mode, learner.shuffle.group
        self.nets = SimpleNamespace(
            query=build_backbone(recipe.model.backbone, recipe.model.width).double(),
            key=build_backbone(recipe.model.backbone, recipe.model.width).double())
        self.nets.query.load_state_dict(learner.query.backbone.state_dict())     # plain BN under the same names
        self.nets.key.load_state_dict(learner.key.backbone.state_dict())
        self.heads = copy.deepcopy(learner.query.heads), copy.deepcopy(learner.key.heads)
        self.classifier = copy.deepcopy(learner.classifier)
        self.queue = [(vector.clone(), int(id)) for vector, id in zip(learner.queue.keys, learner.queue.ids)]
        self.pointer, self.steps = 0, 0

    def parameters(self):
        """name -> parameter, named as the learner's."""
        named = {f"query.backbone.{k}": p for k, p in self.nets.query.named_parameters()}
        named |= {f"query.heads.{k}": p for k, p in self.heads[0].named_parameters()}
        if self.classifier is not None:
            named |= {f"classifier.{k}": p for k, p in self.classifier.named_parameters()}
        return named

    def held(self):
        """{queue: (rows, pointer)}, and below the parameters of the key encoders' backbones by the learner's names."""
        return {"queue": (self.queue, self.pointer)}

    def twins(self):
        return {f"key.backbone.{k}": p for k, p in self.nets.key.named_parameters()}

    def embed(self, net, heads, x, layer="conv", smooth=0):
        """Rows in chunks of `group`, each with BN statistics of its own -> {head: (N, D)}, [h of each chunk]; smooth:
        `smooth` among the heads, log(1 + exp(smooth z)) / smooth for the last ReLU of z."""
        embedded, maps = {name: [] for name in [*heads, *["smooth"] * bool(smooth)]}, []
        for chunk in x.split(self.group):
            h, rest = net.body(chunk)
            out = net.output(h, rest)
            maps.append(h if layer == "conv" else out)
            for name in embedded:
                if name == "smooth":
                    out, head = ((smooth * net.summed(h, rest)).exp() + 1).log() / smooth, heads["inter"]
                else:
                    head = heads[name]
                features = out.sum((2, 3, 4)) / math.prod(out.shape[2:])
                embedded[name].append(torch.stack([row / (row * row).sum().sqrt() for row in head(features)]))
        return {name: torch.cat(rows) for name, rows in embedded.items()}, maps

    def permutations(self, number):
        """Global row that stands at each place of the key batch, as the recipe of shuffling and split BN has it."""
        n, seed = self.recipe.optimise.batch, self.recipe.optimise.seed
        if self.mode == "shuffle":
            return np.random.default_rng((seed, self.steps, number)).permutation(n)
        if self.mode == "none":
            return np.arange(n)
        b = n // self.ranks
        return np.concatenate([rank * b + np.random.default_rng((seed, self.steps, number, rank)).permutation(b)
                               for rank in range(self.ranks)])

    def step(self, views, progress, epoch):
        """One step of plain gradient descent; returns what the global batch's learner logs, and the gradients."""
        r, c, a = self.recipe, self.recipe.contrast, self.recipe.alignment
        n, tau = len(views.ids), self.recipe.contrast.temperature
        with torch.no_grad():
            for q, k in ((self.nets.query, self.nets.key), self.heads):
                for p, twin in zip(q.parameters(), k.parameters()):
                    twin.copy_(c.momentum * twin + (1 - c.momentum) * p)
            keys = []
            for number, x in enumerate(views.keys):
                order = self.permutations(number)
                shuffled, _ = self.embed(self.nets.key, self.heads[1], x[torch.from_numpy(order)])
                rows = {name: torch.empty_like(v) for name, v in shuffled.items()}
                for place, row in enumerate(order):
                    for name in rows:
                        rows[name][row] = shuffled[name][place]
                keys.append(rows)
        q, maps = self.embed(self.nets.query, self.heads[0], views.query, a.layer, a.smooth)
        logs = {}

        rows, hits, same = [], 0, 0
        for i in range(n):
            own = [int(views.ids[i]) == id for _, id in self.queue]
            same += sum(own)
            others = [vector for (vector, _), mine in zip(self.queue, own) if not (mine and c.exclude_same_video)]
            against = [(q["inter"][i] * vector).sum() / tau for vector in others]
            for key in keys:
                positive = (q["inter"][i] * key["inter"][i]).sum() / tau
                rows.append(-torch.log(positive.exp() / (positive.exp() + sum(s.exp() for s in against))))
                hits += all(positive > s for s in against)
        terms = {"inter": sum(rows) / len(rows)}
        logs["queue_accuracy"], logs["same_video_negatives"] = hits / len(rows), same / n
        found = [max(range(n), key=lambda j: (q["inter"][i] * keys[0]["inter"][j]).sum().item()) == i for i in range(n)]
        logs["in_batch_accuracy"] = sum(found) / n

        if c.intra:
            rows = []
            for i in range(n):
                good = ((q["intra"][i] * keys[0]["intra"][i]).sum() / tau).exp()
                for key in keys[1:]:
                    rows.append(-torch.log(good / (good + ((q["intra"][i] * key["intra"][i]).sum() / tau).exp())))
            terms["intra"] = sum(rows) / len(rows)
        if c.order:
            rows = []
            for i in range(n):
                logits = self.classifier(torch.cat([q["order"][i], keys[1]["order"][i], keys[2]["order"][i]]))
                rows.append(-torch.log(logits[views.order[i]].exp() / (logits[0].exp() + logits[1].exp())))
            terms["order"] = sum(rows) / n
        if a.variant != "none":
            rows, shares = self.alignment(q.get("smooth", q["inter"]), keys[0]["inter"], maps, views.motion)
            terms["mal"] = sum(rows) / n
            logs |= shares
        weight = {"inter": c.inter, "intra": c.intra, "order": progress if c.order == "epoch" else c.order,
                  "mal": a.weight * (2 if epoch < a.double_epochs else 1)}
        loss = sum(weight[name] * term for name, term in terms.items())
        gradients = dict(zip(self.parameters(), torch.autograd.grad(loss, list(self.parameters().values()))))
        with torch.no_grad():
            for name, p in self.parameters().items():
                p -= r.optimise.lr * gradients[name]
        for key in keys:
            for i in range(n):
                self.queue[self.pointer] = key["inter"][i], int(views.ids[i])
                self.pointer = (self.pointer + 1) % len(self.queue)
        self.steps += 1
        logs |= {name: float(term.detach()) for name, term in terms.items()}
        return {"loss": float(loss.detach())} | logs, gradients

    def alignment(self, q, k, maps, motion):
        """MAL of each clip in the renormalised form, and the logged sums: Eqs. 4-7 position by position."""
        a = self.recipe.alignment
        similarity = sum((q[i] * k[i]).sum() for i in range(len(q)))
        gradients = [None] * len(maps)
        if a.variant != "v1":
            gradients = torch.autograd.grad(similarity, maps, create_graph=True)
        rows, logs = [], dict.fromkeys([f"mal_{t}" for t in ("st", "s", "t") if getattr(a, t)], 0.0)
        logs |= {"dead_maps": 0, "zero_targets": 0}
        clips = [(h[i], None if g is None else g[i]) for h, g in zip(maps, gradients) for i in range(len(h))]
        for (h, g), m in zip(clips, motion):
            channels, steps, height, width = h.shape
            aligned = {}
            for t in range(steps):
                if a.variant != "v1":
                    at = g[:, t] if a.weights_per_step else g
                    w = at.reshape(channels, -1).sum(1) / at[0].numel()
                for y in range(height):
                    for x in range(width):
                        if a.variant == "v1":
                            aligned[t, y, x] = h[:, t, y, x].sum()
                        else:
                            value = (w * (h if a.variant == "v2" else g)[:, t, y, x]).sum()
                            aligned[t, y, x] = value if value > 0 else value * 0
            target = {key: m[key] for key in aligned}
            logs["zero_targets"] += all(v == 0 for v in target.values())
            logs["dead_maps"] += all(v == 0 for v in aligned.values())
            cost = {"st": distance(aligned, target),
                    "s": distance(pool(aligned, (1, 2)), pool(target, (1, 2))),
                    "t": distance(pool(aligned, (0,)), pool(target, (0,)))}
            rows.append(sum(cost[t] for t in ("st", "s", "t") if getattr(a, t)))
            for t in ("st", "s", "t"):
                if getattr(a, t):
                    logs[f"mal_{t}"] += cost[t].item() / len(q)
        return rows, logs


class MaclrOracle(Oracle):
    """MaCLR's steps likewise: two pathways, four encoders, a list of keys a pathway."""

    def __init__(self, learner, recipe, ranks):
        from shared.nn.backbones import build_backbone

        self.recipe, self.ranks = recipe, ranks
        self.mode, self.group = learner.shuffle.mode, learner.shuffle.group
        m = recipe.maclr
        nets = {"v": (recipe.model.backbone, recipe.model.width, learner.query, learner.key, learner.queue)}
        if m.mm or m.cross_weight and (m.vm or m.mv):
            nets["m"] = (m.motion_backbone, m.motion_width, learner.motion_query, learner.motion_key,
                         learner.motion_queue)
        self.pathways, self.queues = {}, {}
        for pathway, (name, width, query, key, queue) in nets.items():
            pair = build_backbone(name, width).double(), build_backbone(name, width).double()
            pair[0].load_state_dict(query.backbone.state_dict())
            pair[1].load_state_dict(key.backbone.state_dict())
            self.pathways[pathway] = SimpleNamespace(nets=pair, heads=copy.deepcopy((query.heads, key.heads)))
            self.queues[pathway] = [(row.clone(), int(id)) for row, id in zip(queue.keys, queue.ids)]
        on = {"vv": recipe.contrast.inter, "vm": m.vm * m.cross_weight, "mv": m.mv * m.cross_weight, "mm": m.mm}
        self.terms = {term: float(weight) for term, weight in on.items() if weight}
        self.pointers, self.steps = dict.fromkeys(self.pathways, 0), 0

    def head(self, pathway, term):
        """`cross` for vm and mv where the pathway is in a term of its own too and has a head for each, else `inter`."""
        mine = {t for t in self.terms if pathway in t}
        both = mine & {"vm", "mv"} and mine - {"vm", "mv"}
        return "cross" if both and not self.recipe.maclr.shared_heads and term in ("vm", "mv") else "inter"

    def part(self, pathway, head):
        """Which columns of a queued row are a head's: heads in alphabetical order, those that a key is read by."""
        heads = sorted({self.head(pathway, t) for t in self.terms if t[1] == pathway})
        dim = self.recipe.model.dim
        return slice(heads.index(head) * dim, (heads.index(head) + 1) * dim)

    def parameters(self):
        """Those that a query runs through, named as the learner's."""
        named = {}
        for pathway, prefix in (("v", "query"), ("m", "motion_query")):
            heads = {self.head(pathway, t) for t in self.terms if t[0] == pathway}
            if heads:
                module = self.pathways[pathway]
                named |= {f"{prefix}.backbone.{k}": p for k, p in module.nets[0].named_parameters()}
                named |= {f"{prefix}.heads.{k}": p for k, p in module.heads[0].named_parameters()
                          if k.split(".")[0] in heads}
        return named

    def held(self):
        names = {"v": "queue", "m": "motion_queue"}
        return {names[pathway]: (rows, self.pointers[pathway]) for pathway, rows in self.queues.items()}

    def twins(self):
        prefixes = {"v": "key", "m": "motion_key"}
        return {f"{prefixes[pathway]}.backbone.{k}": p for pathway, module in self.pathways.items()
                for k, p in module.nets[1].named_parameters()}

    def step(self, views, progress, epoch):
        r, c = self.recipe, self.recipe.contrast
        n, tau = len(views.ids), c.temperature
        clips = {"vq": views.query, "vk": views.keys[0]}
        if "m" in self.pathways:
            one, two = views.motion_clips
            clips |= {"mq": two, "mk": one} if r.maclr.pairs == "same" else {"mq": one, "mk": two}
        keys = {}
        with torch.no_grad():
            for number, (pathway, module) in enumerate(self.pathways.items()):
                for pair in (module.nets, module.heads):
                    for p, twin in zip(pair[0].parameters(), pair[1].parameters()):
                        twin.copy_(c.momentum * twin + (1 - c.momentum) * p)
                order = self.permutations(number)
                if any(t[1] == pathway for t in self.terms):
                    shuffled, _ = self.embed(module.nets[1], module.heads[1], clips[f"{pathway}k"][order])
                    keys[pathway] = {name: torch.empty_like(v) for name, v in shuffled.items()}
                    for place, row in enumerate(order):
                        for name, rows in keys[pathway].items():
                            rows[row] = shuffled[name][place]
        queries = {pathway: self.embed(module.nets[0], module.heads[0], clips[f"{pathway}q"], r.alignment.layer,
                                       r.alignment.smooth * (pathway == "v"))
                   for pathway, module in self.pathways.items() if any(t[0] == pathway for t in self.terms)}
        losses, logs, weights = {}, {}, dict(self.terms)
        for term in self.terms:
            of, against = term
            q, k = queries[of][0][self.head(of, term)], keys[against][self.head(against, term)]
            part, rows, hits, found, same = self.part(against, self.head(against, term)), [], 0, 0, 0
            for i in range(n):
                own = [int(views.ids[i]) == id for _, id in self.queues[against]]
                scores = torch.stack([row[part] for (row, _), mine in zip(self.queues[against], own)
                                      if not (mine and c.exclude_same_video)]) @ q[i] / tau
                positive = (q[i] * k[i]).sum() / tau
                rows.append(-torch.log(positive.exp() / (positive.exp() + scores.exp().sum())))
                hits += bool((positive > scores).all())
                found += max(range(n), key=lambda j: (q[i] * k[j]).sum().item()) == i
                same += sum(own)
            losses[term] = sum(rows) / n
            logs |= {f"queue_accuracy_{term}": hits / n, f"in_batch_accuracy_{term}": found / n}
            for name, value in (("queue_accuracy", hits / n), ("in_batch_accuracy", found / n),
                                ("same_video_negatives", same / n)):
                logs.setdefault(name, value)
        if r.alignment.variant != "none":
            term = next(term for term in self.terms if term[0] == "v")
            q, k = queries["v"][0], keys[term[1]][self.head(term[1], term)]
            rows, shares = self.alignment(q.get("smooth", q[self.head("v", term)]), k, queries["v"][1], views.motion)
            losses["mal"] = sum(rows) / n
            weights["mal"] = r.alignment.weight * (2 if epoch < r.alignment.double_epochs else 1)
            logs |= shares
        loss = sum(weight * losses[term] for term, weight in weights.items())
        named = self.parameters()
        gradients = dict(zip(named, torch.autograd.grad(loss, list(named.values()))))
        with torch.no_grad():
            for name, p in named.items():
                p -= r.optimise.lr * gradients[name]
        for pathway, rows in keys.items():
            heads = sorted({self.head(pathway, t) for t in self.terms if t[1] == pathway})
            for i in range(n):
                place = self.pointers[pathway]
                self.queues[pathway][place] = torch.cat([rows[head][i] for head in heads]), int(views.ids[i])
                self.pointers[pathway] = (place + 1) % c.queue
        self.steps += 1
        logs |= {term: float(value.detach()) for term, value in losses.items()}
        return {"loss": float(loss.detach())} | logs, gradients


def pool(values, axes):
    """{(t, y, x): value} -> means over the axes that are not kept."""
    groups = {}
    for key, value in values.items():
        groups.setdefault(tuple(key[axis] for axis in axes), []).append(value)
    return {key: sum(group) / len(group) for key, group in groups.items()}


def distance(a, b):
    """|<a> - <b>|^2; 2 where a has no direction, 0 where b has none."""
    if all(v == 0 for v in b.values()):
        return torch.zeros((), dtype=torch.float64)
    if all(v == 0 for v in a.values()):
        return torch.full((), 2.0, dtype=torch.float64)
    a_norm, b_norm = sum(v * v for v in a.values()).sqrt(), sum(v * v for v in b.values()).sqrt()
    return sum((a[key] / a_norm - b[key] / b_norm) ** 2 for key in a)


@pytest.fixture(scope="session")
def descend_beside(make_views):
    """descend_beside(learner, oracle, recipe): three steps of descent of both, whose every logged number and every
    gradient must be the same."""
    def descend(learner, oracle, recipe):
        for step in range(3):
            views = make_views(recipe, step)
            out = learner(views, step / 10, step)
            learner.zero_grad()
            out["loss"].backward()
            logs, gradients = oracle.step(views, step / 10, step)
            assert out.keys() == logs.keys()
            for name, value in logs.items():
                assert out[name].item() == pytest.approx(value, rel=1e-9, abs=1e-9), name
            named = {name: p for name, p in learner.named_parameters() if p.requires_grad}
            assert named.keys() == gradients.keys()
            for name, p in named.items():
                torch.testing.assert_close(p.grad, gradients[name], rtol=1e-7, atol=1e-10,
                                           msg=lambda m: f"{name}: {m}")
                p.data -= recipe.optimise.lr * p.grad
    return descend


@pytest.fixture(scope="session")
def make_oracle():
    return lambda learner, recipe, ranks: (MaclrOracle if recipe.maclr else Oracle)(learner, recipe, ranks)
