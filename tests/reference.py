"""Slow, plain versions of what the project computes fast: loops and lists, one sentence of the definition per line.

The tests hold the fast versions to these. Nothing here imports the project.
"""

import bisect
import math

import torch

# ---------------------------------------------------------------------------------------------------------- evaluation

TIE = 1e-12  # cosines closer than this are equal up to rounding


def cosine(a, b):
    """Cosine of two vectors; the sums are exact, so equal vectors have equal cosines."""
    dot = math.fsum(float(x) * float(y) for x, y in zip(a, b, strict=True))
    lengths = math.sqrt(math.fsum(float(x) ** 2 for x in a)) * math.sqrt(math.fsum(float(y) ** 2 for y in b))
    return dot / lengths if lengths > 0 else 0.0


def nearest(probe, gallery):
    """Position of the highest cosine, the first of equal ones; `gallery` is a list of (position, embedding)."""
    best_position, best_score = None, -math.inf
    for position, embedding in gallery:
        score = cosine(probe, embedding)
        if score > best_score + TIE:
            best_position, best_score = position, score
    return best_position


def leave_one_out(embeddings, identities):
    """Rank-1 percent: each image against all others."""
    hits = 0
    for i, probe in enumerate(embeddings):
        others = [(j, embedding) for j, embedding in enumerate(embeddings) if j != i]
        hits += identities[nearest(probe, others)] == identities[i]
    return 100 * hits / len(embeddings)


def mates_against_rest(embeddings, identities, distractors=(), max_rank=10):
    """CMC percent, a list: for each ordered pair of one identity, the mate against all others and distractors."""
    ranks = []
    for p, probe in enumerate(embeddings):
        rest = [embedding for j, embedding in enumerate(embeddings) if identities[j] != identities[p]]
        rest_scores = [cosine(probe, embedding) for embedding in rest + list(distractors)]
        for i, mate in enumerate(embeddings):
            if i != p and identities[i] == identities[p]:
                mate_score = cosine(probe, mate)
                ranks.append(1 + sum(score > mate_score + TIE for score in rest_scores))
    return [100 * sum(rank <= k for rank in ranks) / len(ranks) for k in range(1, max_rank + 1)]


def probe_gallery(probe, probe_identities, gallery, gallery_identities):
    """Rank-1 percent: the nearest gallery image has the probe's identity."""
    hits = 0
    for embedding, identity in zip(probe, probe_identities, strict=True):
        hits += gallery_identities[nearest(embedding, list(enumerate(gallery)))] == identity
    return 100 * hits / len(probe)


def share_accepted(scores, threshold):
    """Share of scores at or above the threshold."""
    return sum(score >= threshold for score in scores) / len(scores)


def crossing(false_positive_rates, true_positive_rates):
    """FPR where 1 - TPR = FPR, found by walking along each straight piece of a curve from (0, 0) to (1, 1)."""
    points = list(zip(false_positive_rates, true_positive_rates, strict=True))
    for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
        if x0 + y0 <= 1 <= x1 + y1 and x0 + y0 < x1 + y1:
            return x0 + (x1 - x0) * (1 - x0 - y0) / (x1 + y1 - x0 - y0)
    raise AssertionError("the curve does not run from (0, 0) to (1, 1)")


def trapezoids(x, y):
    """Area under straight lines."""
    return sum((x[i + 1] - x[i]) * (y[i + 1] + y[i]) / 2 for i in range(len(x) - 1))


def insightface_accuracy(original_a, mirror_a, original_b, mirror_b, genuine):
    """Mean and standard deviation over ten folds in order, percent: views added, normalised, squared distances."""
    distances = []
    for views in zip(original_a, mirror_a, original_b, mirror_b, strict=True):
        a, b = ([float(x) + float(y) for x, y in zip(*views[k : k + 2], strict=True)] for k in (0, 2))
        a, b = ([x / math.sqrt(math.fsum(y * y for y in vector)) for x in vector] for vector in (a, b))
        distances.append(math.fsum((x - y) ** 2 for x, y in zip(a, b, strict=True)))
    right = [[(d < t / 100) == bool(g) for t in range(400)] for d, g in zip(distances, genuine, strict=True)]
    size, longer = divmod(len(genuine), 10)
    ends = [k * size + min(k, longer) for k in range(11)]
    accuracies = []
    for start, end in zip(ends, ends[1:], strict=False):
        others = right[:start] + right[end:]
        counts = [sum(row[t] for row in others) for t in range(400)]
        best = counts.index(max(counts))
        accuracies.append(100 * sum(row[best] for row in right[start:end]) / (end - start))
    mean = math.fsum(accuracies) / 10
    return mean, math.sqrt(math.fsum((accuracy - mean) ** 2 for accuracy in accuracies) / 10)


def ten_fold_verification(scores, genuine):
    """Accuracy, AUC and EER in percent of ten contiguous folds with thresholds -1, -0.99, ..., 1."""
    thresholds = [step / 100 for step in range(-100, 101)]
    pairs = [(float(score), bool(label)) for score, label in zip(scores, genuine, strict=True)]
    folds = []
    for fold in range(10):
        length = len(pairs) // 10 + (fold < len(pairs) % 10)
        start = sum(len(earlier) for earlier in folds)
        folds.append(pairs[start : start + length])

    accuracies = []
    for fold in folds:
        others = [pair for other in folds if other is not fold for pair in other]
        correct = [sum((score >= threshold) == label for score, label in others) for threshold in thresholds]
        threshold = thresholds[correct.index(max(correct))]
        accuracies.append(sum((score >= threshold) == label for score, label in fold) / len(fold))

    def fold_averages(wanted):
        """Mean accepted share from the highest threshold to the lowest, over the folds that have such pairs."""
        parts = [[score for score, label in fold if label == wanted] for fold in folds]
        parts = [part for part in parts if part]
        inner = [sum(share_accepted(part, t) for part in parts) / len(parts) for t in reversed(thresholds)]
        return [0.0, *inner, 1.0]

    fpr, tpr = fold_averages(False), fold_averages(True)
    return 100 * sum(accuracies) / 10, 100 * trapezoids(fpr, tpr), 100 * crossing(fpr, tpr)


def exact_auc(scores, genuine):
    """Percent of (genuine, impostor) couples in which the genuine score is higher, ties one half."""
    genuine_scores = [score for score, label in zip(scores, genuine, strict=True) if label]
    impostor_scores = [score for score, label in zip(scores, genuine, strict=True) if not label]
    won = sum((g > i) + (g == i) / 2 for g in genuine_scores for i in impostor_scores)
    return 100 * won / (len(genuine_scores) * len(impostor_scores))


def exact_eer(scores, genuine):
    """EER in percent of the curve with a point at every distinct score."""
    thresholds = [math.inf, *sorted(set(scores), reverse=True)]
    genuine_scores = [score for score, label in zip(scores, genuine, strict=True) if label]
    impostor_scores = [score for score, label in zip(scores, genuine, strict=True) if not label]
    fpr = [share_accepted(impostor_scores, threshold) for threshold in thresholds]
    tpr = [share_accepted(genuine_scores, threshold) for threshold in thresholds]
    return 100 * crossing(fpr, tpr)


def exact_tar_at_far(scores, genuine, one_in):
    """Largest TAR in percent of any threshold that accepts at most one impostor in `one_in`."""
    genuine_scores = [score for score, label in zip(scores, genuine, strict=True) if label]
    impostor_scores = [score for score, label in zip(scores, genuine, strict=True) if not label]
    best = 0.0
    for threshold in [math.inf, *set(scores)]:
        if sum(score >= threshold for score in impostor_scores) * one_in <= len(impostor_scores):
            best = max(best, share_accepted(genuine_scores, threshold))
    return 100 * best


def false_matches(embeddings, ages, identities, one_in):
    """Threshold, genuine scores at or above it, and (younger age, older age, passes) of all impostor pairs.

    Every score of any pair is tried as the threshold; the lowest one that at most one impostor in `one_in` reaches
    counts, None where each lets more pass. Pictures of unknown age (-1) are in no pair.
    """
    known = [n for n, age in enumerate(ages) if age >= 0]
    pairs = [
        (round(cosine(embeddings[a], embeddings[b]), 12), a, b) for i, a in enumerate(known) for b in known[i + 1 :]
    ]
    genuine = [score for score, a, b in pairs if identities[a] == identities[b]]
    impostors = [(score, *sorted((ages[a], ages[b]))) for score, a, b in pairs if identities[a] != identities[b]]
    ordered = sorted(score for score, *_ in impostors)
    threshold = None
    for score in sorted({score for score, *_ in pairs}, reverse=True):
        if (len(ordered) - bisect.bisect_left(ordered, score)) * one_in > len(ordered):
            break
        threshold = score
    if threshold is None:
        return None, None, None
    accepted = [score for score in genuine if score >= threshold]
    return threshold, accepted, [(low, high, score >= threshold) for score, low, high in impostors]


# ------------------------------------------------------------------------------------------------- networks and losses
#
# Torch tensors only for autograd: a gradient through these formulas is the gradient that the fast ones must have.


def margin_softmax(features, weight, labels, scale, with_margin):
    """Logits by one-hot vectors and angles; `with_margin` maps the angle at the label to what stands for its cosine."""
    rows = []
    for feature, label in zip(features, labels, strict=True):
        row = []
        for identity, direction in enumerate(weight):
            cos = sum(feature * direction) / (sum(feature**2).sqrt() * sum(direction**2).sqrt())
            theta = cos.clamp(-1, 1).acos()
            one_hot = 1.0 if identity == label else 0.0
            row.append(scale * (one_hot * with_margin(theta) + (1 - one_hot) * theta.cos()))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def cosface(features, weight, labels, scale=64.0, margin=0.35):
    """cos(theta) - m at the label."""
    return margin_softmax(features, weight, labels, scale, lambda theta: theta.cos() - margin)


def arcface(features, weight, labels, scale=64.0, margin=0.5):
    """cos(theta + m) at the label, a straight line in cos(theta) from theta = pi - m on."""

    def with_margin(theta):
        if theta.cos() <= math.cos(math.pi - margin):
            return theta.cos() - margin * math.sin(math.pi - margin)
        return (theta + margin).cos()

    return margin_softmax(features, weight, labels, scale, with_margin)


def combined_margin(features, weight, labels, scale=64.0, margin=(1.0, 0.3, 0.2)):
    """cos(m1 theta + m2) - m3 at the label; in each further half turn the cosine is turned over and 2 lower."""

    def with_margin(theta):
        angle, lower = margin[0] * theta + margin[1], 0
        while angle > math.pi:
            angle, lower = angle - math.pi, lower + 2  # cos(angle - pi) = -cos(angle)
        return angle.cos() - lower - margin[2]

    return margin_softmax(features, weight, labels, scale, with_margin)


def adaface(features, weight, labels, scale=64.0, margin=0.4, mean=20.0, deviation=100.0):
    """AdaFace with given running statistics of the lengths, picture by picture."""
    rows = []
    for feature, label in zip(features, labels, strict=True):
        length = min(max(float(sum(feature.detach() ** 2)) ** 0.5, 0.001), 100.0)
        z = min(max(0.333 * (length - mean) / (deviation + 0.001), -1.0), 1.0)

        def with_margin(theta, z=z):
            return (theta - margin * z).clamp(0.001, math.pi - 0.001).cos() - (margin * z + margin)

        rows.append(margin_softmax(feature[None], weight, label[None], scale, with_margin)[0])
    return torch.stack(rows)


def log_prior(age, identities, ages, num_identities, bandwidth=4.0, floor=0.001):
    """log p(j | age) of every person j: the share of j among the pictures, each weighed by how near its age is."""
    if age == -1:
        return [0.0] * num_identities
    weighed = [0.0] * num_identities
    for identity, own in zip(identities, ages, strict=True):
        if own != -1:
            weighed[identity] += math.exp(-((float(age) - float(own)) ** 2) / (2 * bandwidth**2))
    return [math.log(weight / sum(weighed) + floor / num_identities) for weight in weighed]


def batch_norm(x, state, name, training):
    """x (N, D), normalised by the batch in training and by the running statistics else."""
    mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    if training:
        mean = sum(x) / len(x)
        variance = sum((row - mean) ** 2 for row in x) / len(x)
    return (x - mean) / (variance + 1e-5).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(x, state, name):
    """x (N, D) -> W x + b of every row."""
    return torch.stack([state[f"{name}.weight"] @ row + state[f"{name}.bias"] for row in x])


def relu(x):
    return x * (x > 0)


def purification(x, unit, state, training):
    """y of the unit `unit`, a scale 0..2 or a variant's name; `state` holds seq.N.*"""

    def bn(n, z):
        return batch_norm(z, state, f"seq.{n}", training)

    def fc(n, z):
        return linear(z, state, f"seq.{n}")

    formulas = {
        0: lambda: x,
        1: lambda: x - fc(2, relu(bn(0, x))),
        2: lambda: x - fc(5, relu(bn(3, fc(2, relu(bn(0, x)))))),
        "x_minus_linear_relu_bn": lambda: x - fc(2, relu(bn(0, x))),
        "x_minus_relu_linear_bn": lambda: x - relu(fc(1, bn(0, x))),
        "x_plus_relu_linear_bn": lambda: x + relu(fc(1, bn(0, x))),
        "x_plus_linear_relu_bn": lambda: x + fc(2, relu(bn(0, x))),
        "relu_linear_bn": lambda: relu(fc(1, bn(0, x))),
        "linear_relu_bn": lambda: fc(2, relu(bn(0, x))),
    }
    return formulas[unit]()


def gaussian_prediction(age, state, training):
    """mu and logvar of CLUB's q(identity | age); `state` holds p_mu.* and p_logvar.*"""
    outputs = []
    for name in ("p_mu", "p_logvar"):
        hidden = relu(linear(batch_norm(age, state, f"{name}.0", training), state, f"{name}.1"))
        outputs.append(linear(batch_norm(hidden, state, f"{name}.3", training), state, f"{name}.4"))
    return outputs[0], outputs[1].tanh()


def log_likelihood(mu, logvar, identity):
    """CLUB's L, one term after the other."""
    total = 0.0
    for n in range(len(identity)):
        for d in range(len(identity[n])):
            total = total - (mu[n, d] - identity[n, d]) ** 2 / logvar[n, d].exp() - logvar[n, d]
    return total / len(identity)


def squared_error(mu, logvar, identity, n, m):
    """Distance of identity embedding m from the prediction for n, in variances."""
    return sum((mu[n, d] - identity[m, d]) ** 2 / logvar[n, d].exp() for d in range(identity.shape[1]))


def sampled_club(mu, logvar, identity, permutation):
    """CLUB's I with one negative a sample."""
    total = 0.0
    for n in range(len(identity)):
        m = int(permutation[n])
        total = total - squared_error(mu, logvar, identity, n, n) + squared_error(mu, logvar, identity, n, m)
    return total / len(identity) / 2


def unsampled_club(mu, logvar, identity):
    """CLUB's I with all N samples as negatives of each."""
    count, total = len(identity), 0.0
    for n in range(count):
        negatives = sum(squared_error(mu, logvar, identity, n, m) for m in range(count)) / count
        total = total - squared_error(mu, logvar, identity, n, n) + negatives
    return total / count / 2
