"""Losses: pure functions from rewards to one loss per comparison (P), response (N) or example (G).

None of them reduces: the caller sums and divides by a *global* count, so that gradient accumulation, uneven batches
and several processes all give the result of one big batch. Which data each one learns from is in
:mod:`plaudit.objectives`. Labels must have the 1-D shape of the rewards, else `ValueError` is raised: broadcasting
(P, 1) against (P,) would silently give (P, P).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid


def bradley_terry_loss(
    better_P: Tensor,
    worse_P: Tensor,
    margin_P: Tensor | None = None,
    *,
    preference_prob_P: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""Negative log-likelihood of each comparison under the Bradley-Terry model.

    .. math:: \ell = -p \log \sigma(r^+ - r^- - m) - (1 - p) \log \sigma(m - r^+ + r^-)

    with :math:`p = 1` or the preference probability, smoothed to :math:`(1 - 2\epsilon) p + \epsilon`.

    Args:
        better_P, worse_P: Rewards of the preferred responses and of the others, shape (P,).
        margin_P: How much better they should be, in reward units, shape (P,); None means 0.
        preference_prob_P: Probability that the preferred response is really better, shape (P,); None means 1.
        label_smoothing: Probability :math:`\epsilon` that a label is wrong.

    Source: Bradley and Terry (1952), https://www.jstor.org/stable/2334029; the additive margin is that of
    Llama 2, https://arxiv.org/abs/2307.09288; smoothing as in https://ericmitchell.ai/cdpo.pdf.

    >>> bradley_terry_loss(torch.tensor([1.0]), torch.tensor([1.0]))
    tensor([0.6931])
    >>> bradley_terry_loss(torch.tensor([3.0]), torch.tensor([1.0]), torch.tensor([2.0]))
    tensor([0.6931])
    >>> bradley_terry_loss(torch.tensor([2.0]), torch.tensor([0.0]), preference_prob_P=torch.tensor([0.75]))
    tensor([0.6269])
    """
    _require_same_shape(better_P, worse_P, margin_P, preference_prob_P)
    difference_P = better_P - worse_P
    if margin_P is not None:
        difference_P = difference_P - margin_P
    if preference_prob_P is None and not label_smoothing:
        return -logsigmoid(difference_P)
    p = torch.ones_like(difference_P) if preference_prob_P is None else preference_prob_P
    p = (1 - 2 * label_smoothing) * p + label_smoothing
    return -p * logsigmoid(difference_P) - (1 - p) * logsigmoid(-difference_P)


def scaled_bradley_terry_loss(better_P: Tensor, worse_P: Tensor, margin_P: Tensor) -> Tensor:
    r"""Bradley-Terry loss of each comparison times its margin: a clearly better response counts for more.

    .. math:: \ell = -m \log \sigma(r^+ - r^-)

    Args:
        better_P, worse_P: Rewards of the preferred responses and of the others, shape (P,).
        margin_P: How much better the preferred ones are, shape (P,).

    Source: Wang et al. (2024), HelpSteer2-Preference, https://arxiv.org/abs/2410.01257, "Scaled Bradley-Terry".

    >>> scaled_bradley_terry_loss(torch.tensor([1.0]), torch.tensor([1.0]), torch.tensor([3.0]))
    tensor([2.0794])
    """
    _require_same_shape(better_P, worse_P, margin_P)
    return margin_P * bradley_terry_loss(better_P, worse_P)


def rao_kupper_loss(
    better_P: Tensor, worse_P: Tensor, log_threshold: Tensor, preference_prob_P: Tensor | None = None
) -> Tensor:
    r"""Negative log-likelihood of each comparison with ties: rewards closer than a threshold look alike.

    .. math:: P(i \succ j) = \sigma(r_i - r_j - \eta), \quad
        P(i \sim j) = (e^{2\eta} - 1) \, \sigma(r_i - r_j - \eta) \, \sigma(r_j - r_i - \eta)

    Args:
        better_P, worse_P: Rewards of the preferred responses (in a tie, of either) and of the others, shape (P,).
        log_threshold: :math:`\eta = \log\theta > 0`, a scalar or shape (1,): learned.
        preference_prob_P: Probability that the preferred response is better, shape (P,); 0.5 is a tie, None means 1.

    Source: Rao and Kupper (1967), https://doi.org/10.1080/01621459.1967.10482901.

    >>> one, zero = torch.tensor([1.0]), torch.tensor([0.0])
    >>> rao_kupper_loss(zero, zero, torch.tensor(3.0).log(), torch.tensor([0.5]))  # -log P(tie), P = 2/4
    tensor([0.6931])
    >>> rao_kupper_loss(one, zero, torch.tensor(2.0).log())
    tensor([0.5514])
    """
    _require_same_shape(better_P, worse_P, preference_prob_P)
    difference_P = better_P - worse_P
    eta = log_threshold.reshape(())
    win_P, loss_P = logsigmoid(difference_P - eta), logsigmoid(-difference_P - eta)
    # The logarithm has no finite gradient at 0, and its NaN would reach comparisons that are no ties.
    tiny = torch.finfo(eta.dtype).tiny
    positive_eta = torch.where(eta.abs() < tiny, tiny, eta)
    # The same P(tie) as (1 - exp(-2 eta)) times two sigmoids: nothing large to cancel.
    tie_P = torch.log(-torch.expm1(-2 * positive_eta)) + logsigmoid(eta - difference_P) + logsigmoid(eta + difference_P)
    return _three_outcomes(win_P, tie_P, loss_P, preference_prob_P)


def davidson_loss(
    better_P: Tensor, worse_P: Tensor, log_tie_weight: Tensor, preference_prob_P: Tensor | None = None
) -> Tensor:
    r"""Negative log-likelihood of each comparison, with a tie as a third outcome of learned weight.

    .. math:: P(i \succ j) \propto e^{r_i}, \quad P(j \succ i) \propto e^{r_j}, \quad
        P(i \sim j) \propto \nu \, e^{(r_i + r_j)/2}

    Args:
        better_P, worse_P: Rewards of the preferred responses (in a tie, of either) and of the others, shape (P,).
        log_tie_weight: :math:`\log\nu`, a scalar or shape (1,): learned.
        preference_prob_P: Probability that the preferred response is better, shape (P,); 0.5 is a tie, None means 1.

    Source: Davidson (1970), https://doi.org/10.1080/01621459.1970.10481082.

    >>> one, zero = torch.tensor([1.0]), torch.tensor([0.0])
    >>> davidson_loss(zero, zero, torch.tensor(0.0), torch.tensor([0.5])).exp()  # three equal outcomes
    tensor([3.])
    >>> davidson_loss(one, zero, torch.tensor(-50.0)), bradley_terry_loss(one, zero)
    (tensor([0.3133]), tensor([0.3133]))
    """
    _require_same_shape(better_P, worse_P, preference_prob_P)
    half_P = (better_P - worse_P) / 2
    log_nu_P = log_tie_weight.reshape(()).expand_as(half_P)
    win_P, tie_P, loss_P = torch.stack((half_P, log_nu_P, -half_P)).log_softmax(dim=0)
    return _three_outcomes(win_P, tie_P, loss_P, preference_prob_P)


def _three_outcomes(win_P: Tensor, tie_P: Tensor, loss_P: Tensor, preference_prob_P: Tensor | None) -> Tensor:
    if preference_prob_P is None:
        return -win_P
    decided_P = preference_prob_P * win_P + (1 - preference_prob_P) * loss_P
    return -torch.where(preference_prob_P == 0.5, tie_P, decided_P)


def hinge_loss(better_P: Tensor, worse_P: Tensor, margin_P: Tensor | None = None) -> Tensor:
    r"""Hinge loss of each comparison: zero once the preferred reward leads by the margin, linear below.

    .. math:: \ell = \max(0, \; m - (r^+ - r^-))

    Args:
        better_P, worse_P: Rewards of the preferred responses and of the others, shape (P,).
        margin_P: How far they should be ahead, in reward units, shape (P,); None means 1.

    Source: Joachims (2002), Optimizing search engines using clickthrough data, https://doi.org/10.1145/775047.775067.

    >>> hinge_loss(torch.tensor([0.5, 3.0]), torch.tensor([0.0, 0.0]))
    tensor([0.5000, 0.0000])
    """
    _require_same_shape(better_P, worse_P, margin_P)
    margin: Tensor | float = 1.0 if margin_P is None else margin_P
    return (margin - (better_P - worse_P)).clamp_min(0)


def plackett_luce_loss(
    rewards_N: Tensor, scores_N: Tensor, example_of_response: Tensor, top_k: int | None = None
) -> Tensor:
    r"""Negative log-likelihood of each choice in a ranking: a response out of itself and all ranked below.

    .. math:: \ell_i = -r_i + \log \Big( e^{r_i} + \sum_{j:\, s_j < s_i} e^{r_j} \Big)

    The sum over an example is the Plackett-Luce likelihood of its ranking. Responses of equal score are not compared
    with each other, and the last ones, with nothing below, give 0.

    Args:
        rewards_N: Shape (N,).
        scores_N: Higher is better, shape (N,); equal scores are ties.
        example_of_response: The example that each response belongs to, shape (N,).
        top_k: Count only the choices of the k best of an example; None means all.

    Source: Plackett (1975), https://doi.org/10.2307/2346567; for reward models https://arxiv.org/abs/2305.18290,
    appendix A.3.

    >>> same = torch.zeros(3, dtype=torch.long)
    >>> plackett_luce_loss(torch.zeros(3), torch.tensor([2.0, 1.0, 0.0]), same).sum().exp()  # 3! orders
    tensor(6.)
    """
    _require_same_shape(rewards_N, scores_N, example_of_response)
    same_NN = example_of_response[:, None] == example_of_response
    below_NN = same_NN & (scores_N < scores_N[:, None])
    itself_NN = torch.eye(len(rewards_N), dtype=torch.bool, device=rewards_N.device)
    choices_NN = rewards_N.expand(len(rewards_N), -1).masked_fill(~(below_NN | itself_NN), -torch.inf)
    loss_N = choices_NN.logsumexp(dim=1) - rewards_N
    if top_k is None:
        return loss_N
    better_N = (same_NN & (scores_N > scores_N[:, None])).sum(dim=1)
    return torch.where(better_N < top_k, loss_N, 0)


def regression_loss(rewards_N: Tensor, ratings_N: Tensor) -> Tensor:
    r"""Squared error of each reward as an estimate of its rating.

    .. math:: \ell = (r - g)^2

    Source: Wang et al. (2024), HelpSteer2, https://arxiv.org/abs/2406.08673.

    >>> regression_loss(torch.tensor([3.5]), torch.tensor([4.0]))
    tensor([0.2500])
    """
    _require_same_shape(rewards_N, ratings_N)
    return (rewards_N - ratings_N) ** 2


def binary_cross_entropy_loss(rewards_N: Tensor, labels_N: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    r"""Negative log-likelihood of each label, with the reward as the logit of a good response.

    .. math:: \ell = -y \log \sigma(r) - (1 - y) \log \sigma(-r)

    Args:
        rewards_N: Shape (N,).
        labels_N: 1 for good, 0 for bad, or a probability between, shape (N,).
        label_smoothing: Probability that a label is wrong.

    Source: Cobbe et al. (2021), Training verifiers to solve math word problems, https://arxiv.org/abs/2110.14168.

    >>> binary_cross_entropy_loss(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1.0]))
    tensor([0.6931, 0.1269])
    """
    _require_same_shape(rewards_N, labels_N)
    target_N = (1 - 2 * label_smoothing) * labels_N + label_smoothing
    return binary_cross_entropy_with_logits(rewards_N, target_N, reduction="none")


def _require_same_shape(*tensors: Tensor | None) -> None:
    shapes = [tuple(tensor.shape) for tensor in tensors if tensor is not None]
    if len(set(shapes)) != 1 or len(shapes[0]) != 1:
        raise ValueError(f"all tensors must have one and the same 1-D shape, got {shapes}")


def center_rewards_penalty(rewards_N: Tensor, example_of_response: Tensor, num_examples: int) -> Tensor:
    r"""Twice the mean reward of each example, squared: keeps rewards near zero; comparisons fix no level.

    .. math:: \Big( \frac{2}{K} \sum_{k=1}^{K} r_k \Big)^2

    which is :math:`(r^+ + r^-)^2` for a pair. Returns the penalty of each example, shape (G,), before its coefficient
    (recommended: 0.01).

    Source: Eisenstein et al. (2023), https://arxiv.org/abs/2312.09244.

    >>> center_rewards_penalty(torch.tensor([2.0, -1.0]), torch.tensor([0, 0]), 1)
    tensor([1.])
    """
    zeros = torch.zeros(num_examples, device=rewards_N.device, dtype=rewards_N.dtype)
    total_G = zeros.index_add(0, example_of_response, rewards_N)
    responses_G = zeros.index_add(0, example_of_response, torch.ones_like(rewards_N))
    return (2 * total_G / responses_G) ** 2


def length_correlation(rewards_N: Tensor, lengths_N: Tensor, weight_N: Tensor) -> Tensor:
    r"""Pearson's correlation of rewards with lengths: a penalty on it keeps the reward from favouring long responses.

    .. math:: \rho = \frac{\sum_i w_i (r_i - \bar r)(l_i - \bar l)}
        {\sqrt{\sum_i w_i (r_i - \bar r)^2 \; \sum_i w_i (l_i - \bar l)^2}}

    Args:
        rewards_N: Shape (N,).
        lengths_N: Tokens of each response without its prompt, shape (N,).
        weight_N: 1 for real responses, 0 for fillers, shape (N,).

    Returns:
        A scalar in [-1, 1]; 0 where all rewards or all lengths are equal.

    Source: Chen et al. (2024), ODIN, https://arxiv.org/abs/2402.07319, equation 4.

    >>> lengths = torch.tensor([10.0, 20.0, 40.0])
    >>> length_correlation(0.1 * lengths, lengths, torch.ones(3))
    tensor(1.)
    """
    _require_same_shape(rewards_N, lengths_N, weight_N)
    reward_N = _deviations(rewards_N, weight_N)
    length_N = _deviations(lengths_N.to(rewards_N.dtype), weight_N)
    weight_N = weight_N / weight_N.sum().clamp_min(1)
    reward_N = reward_N - (weight_N * reward_N).sum()
    length_N = length_N - (weight_N * length_N).sum()
    variance = (weight_N * reward_N**2).sum() * (weight_N * length_N**2).sum()
    # The square root has no gradient at 0.
    spread = torch.where(variance > 0, variance, 1).sqrt()
    return torch.where(variance > 0, (weight_N * reward_N * length_N).sum() / spread, 0)


def _deviations(values_N: Tensor, weight_N: Tensor) -> Tensor:
    """Returns values less one of them, in units of the largest: a correlation and its gradient stay the same.

    Equal values become exact zeros (less a rounded mean they would not), and squares neither overflow nor vanish.
    """
    reference = values_N.detach().index_select(0, weight_N.argmax(dim=0, keepdim=True))
    deviation_N = torch.where(weight_N > 0, values_N - reference, 0)
    largest = deviation_N.detach().abs().amax()
    return deviation_N / torch.where(largest > 0, largest, 1)


def load_balancing_loss(router_logits: Sequence[Tensor], top_k: int, weight_T: Tensor | None = None) -> Tensor:
    r"""Auxiliary loss of mixture-of-experts models: smallest where all experts get the same share of tokens.

    .. math:: E \sum_{k} \sum_{e} f_{ke} \, p_e

    with :math:`f_{ke}` the share of tokens whose k-th choice is expert e, and :math:`p_e` the mean probability that
    the router gives to e, both over all layers.

    Args:
        router_logits: For each layer the router's scores, shape (T, E).
        top_k: Experts that each token goes to.
        weight_T: How often each token counts, shape (T,): 0 for padding, and for a shared prompt the number of
            responses that share it.

    Returns:
        A scalar, before its coefficient; ``top_k`` where routing is uniform.

    Source: Fedus et al. (2021), https://arxiv.org/abs/2101.03961, equations 4 to 6, over k choices as in Mixtral.

    >>> load_balancing_loss([torch.zeros(4, 2)], top_k=2)
    tensor(2.)
    """
    device = router_logits[0].device
    logits = torch.cat([layer.to(device).float() for layer in router_logits])
    experts = logits.shape[-1]
    weight = torch.ones(len(logits) // len(router_logits), device=device) if weight_T is None else weight_T.float()
    weight = weight.to(device).repeat(len(router_logits))
    probabilities = logits.softmax(dim=-1)
    chosen = probabilities.topk(top_k, dim=-1).indices
    total = weight.sum()
    # (k, E): weighted share of the tokens whose k-th choice is each expert.
    zeros = torch.zeros(experts, device=device)
    share = torch.stack([zeros.index_add(0, chosen[:, k], weight) for k in range(top_k)]) / total
    mean_probability = (probabilities * weight[:, None]).sum(dim=0) / total
    return experts * (share * mean_probability).sum()
