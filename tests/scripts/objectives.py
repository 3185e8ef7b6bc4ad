"""Makes tests/fixtures/objectives.json: objectives, optimiser and whole training steps, worked out by PyTorch.

    OMP_NUM_THREADS=1 python tests/scripts/objectives.py

Needs torch and transformers, and the models that hf_parity.py wrote. Formulas stand here as the papers have them, on
padded tensors with masks or as explicit sums, so that nothing is shared with the code under test but the mathematics.
tests/tests/objectives.rs and tests/tests/training_steps.rs read the result.
"""

import json
import pathlib

import torch
import transformers
from torch.nn.functional import cross_entropy, logsigmoid

FIXTURES = pathlib.Path(__file__).resolve().parents[1] / "fixtures"


def numbers(tensor):
    return [float(f"{x:.9g}") for x in tensor.detach().flatten().tolist()]


def generator(seed):
    return torch.Generator().manual_seed(seed)


def normal(seed, *shape):
    return torch.randn(*shape, generator=generator(seed))


# Ranking loss (Ouyang et al. 2022, equation 1).

def ranking():
    cases = []
    for seed, ranks in [(1, [1, 2]), (2, [2, 1, 3, 4]), (3, [1, 2, 2, 1, 3]), (4, [4, 4, 2, 9, 1, 2, 7, 8, 3])]:
        scores = (2 * normal(seed, len(ranks))).requires_grad_()
        k = len(ranks)
        loss = 0.0
        for w in range(k):
            for l in range(k):
                if ranks[w] < ranks[l]:
                    loss = loss - logsigmoid(scores[w] - scores[l])
        loss = loss / (k * (k - 1) / 2)
        loss.backward()
        cases.append(dict(scores=numbers(scores), ranks=ranks, loss=loss.item(), gradient=numbers(scores.grad)))
    return cases


# KL estimators, and their means over samples against the exact KL.

def kl():
    logprobs, ref_logprobs = -normal(5, 12).abs(), -normal(6, 12).abs()
    r = (ref_logprobs - logprobs).exp()
    return dict(
        logprobs=numbers(logprobs), ref_logprobs=numbers(ref_logprobs),
        k1=numbers(-r.log()), k2=numbers(r.log() ** 2 / 2), k3=numbers((r - 1) - r.log()),
    )


def adaptive_kl():
    """Ziegler et al. 2019, section 2.2."""
    kl_coef, target, horizon, n = 0.2, 6.0, 10000.0, 256
    kls = [1.0, 30.0, 6.5, 5.9, -2.0, 6.0]
    kl_coefs = []
    for kl in kls:
        error = torch.clip(torch.tensor(kl / target - 1, dtype=torch.float64), -0.2, 0.2).item()
        kl_coef = kl_coef * (1 + error * n / horizon)
        kl_coefs.append(kl_coef)
    return dict(kl_coef=0.2, target=target, horizon=horizon, n_rollouts=n, kls=kls, kl_coefs=kl_coefs)


# From scores to advantages, on a padded batch. What is masked is filled with numbers that would show.

def experience():
    lengths, width = [3, 7, 1, 5], 7
    kl_coef, gamma, lam = 0.3, 0.97, 0.9
    logprobs, ref_logprobs = -normal(7, 4, width).abs(), -normal(8, 4, width).abs()
    values, scores = normal(9, 4, width), normal(10, 4)
    mask = torch.arange(width)[None, :] < torch.tensor(lengths)[:, None]
    rewards = -kl_coef * (logprobs - ref_logprobs)
    for i, n in enumerate(lengths):
        rewards[i, n - 1] += scores[i]
    advantages = torch.full_like(values, 1e6)
    for i, n in enumerate(lengths):
        delta = [rewards[i, t] + gamma * (values[i, t + 1] if t + 1 < n else 0.0) - values[i, t] for t in range(n)]
        for t in range(n):
            advantages[i, t] = sum((gamma * lam) ** l * delta[t + l] for l in range(n - t))
    returns = advantages + values
    real = advantages[mask]
    white = (advantages - real.mean()) / torch.sqrt(real.var(unbiased=False) + 1e-8)
    ragged = lambda tensor: [numbers(row[:n]) for row, n in zip(tensor, lengths)]
    return dict(
        kl_coef=kl_coef, gamma=gamma, gae_lambda=lam, scores=numbers(scores), logprobs=ragged(logprobs),
        ref_logprobs=ragged(ref_logprobs), values=ragged(values), rewards=ragged(rewards),
        advantages=ragged(advantages), returns=ragged(returns), white=ragged(white),
    )


# PPO's losses (Schulman et al. 2017; decoupled: Hilton et al. 2022), summed over tokens.

def policy_loss(new, proximal, behaviour, advantages, clip_range, weight_cap):
    ratio = torch.exp(new - proximal)
    weight = torch.exp(proximal - behaviour).clamp(max=weight_cap)
    surrogate = torch.min(ratio * advantages, ratio.clamp(1 - clip_range, 1 + clip_range) * advantages)
    return -(weight * surrogate)


def value_loss(new, old, returns, clip_range_value):
    clipped = old + (new - old).clamp(-clip_range_value, clip_range_value)
    return 0.5 * torch.max((new - returns) ** 2, (clipped - returns) ** 2)


def ppo():
    n, clip_range, weight_cap, clip_range_value = 24, 0.2, 1.3, 0.4
    proximal = -normal(11, n).abs() - 0.1
    new = (proximal + 0.3 * normal(12, n)).requires_grad_()
    behaviour = proximal + 0.3 * normal(13, n)
    behaviour[:8] = proximal[:8]
    advantages = normal(14, n)
    low, high = band = [0.8, 1.25]
    ratio = lambda a, b: (a - b).exp()
    is_masked = (ratio(proximal, behaviour) < low) | (ratio(proximal, behaviour) > high)
    is_clipped = lambda r: ((advantages > 0) & (r > 1 + clip_range)) | ((advantages < 0) & (r < 1 - clip_range))
    # By name: each token's loss, whether it is clipped (or its weight truncated), whether it is masked.
    nowhere = torch.zeros(n, dtype=torch.bool)
    objectives = dict(
        plain=(policy_loss(new, behaviour, behaviour, advantages, clip_range, 9.0), is_clipped(ratio(new, behaviour)), nowhere),
        decoupled=(policy_loss(new, proximal, behaviour, advantages, clip_range, weight_cap), is_clipped(ratio(new, proximal)), nowhere),
        # Espeholt et al. 2018: the policy gradient, weighted by the truncated ratio.
        truncated=(-advantages * ratio(new, behaviour).clamp(max=weight_cap).detach() * (1 + new - new.detach()),
                   ratio(new, behaviour) > weight_cap, nowhere),
        masked=(torch.where(is_masked, 0.0, policy_loss(new, proximal, behaviour, advantages, clip_range, 9.0)),
                is_clipped(ratio(new, proximal)) & ~is_masked, is_masked),
    )
    policy = {}
    for name, (losses, clipped, masked) in objectives.items():
        (gradient,) = torch.autograd.grad(losses.sum(), new, retain_graph=True)
        counts = dict(n_clipped=int(clipped.sum()), n_masked=int(masked.sum()))
        policy[name] = dict(loss=losses.sum().item(), gradient=numbers(gradient), **counts)
        assert counts["n_clipped"] > 0 and (name != "masked" or counts["n_masked"] > 3), "nothing is tested"
    old_values, returns = normal(15, n), normal(16, n)
    new_values = (old_values + 0.6 * normal(17, n)).requires_grad_()
    v_loss = value_loss(new_values, old_values, returns, clip_range_value).sum()
    v_loss.backward()
    return dict(
        new_logprobs=numbers(new), proximal_logprobs=numbers(proximal), behaviour_logprobs=numbers(behaviour),
        advantages=numbers(advantages), clip_range=clip_range, weight_cap=weight_cap, band=band, policy=policy,
        new_values=numbers(new_values), old_values=numbers(old_values), returns=numbers(returns),
        clip_range_value=clip_range_value, value_loss=v_loss.item(), value_gradient=numbers(new_values.grad),
    )


# AdamW with clipping by the global norm.

def adamw():
    settings = dict(lr=0.01, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.1)
    matrix, gain = torch.nn.Parameter(normal(18, 3, 4)), torch.nn.Parameter(normal(19, 5))
    start = [numbers(matrix), numbers(gain)]
    decayed, plain = dict(params=[matrix]), dict(params=[gain], weight_decay=0.0)
    optimizer = torch.optim.AdamW([decayed, plain], **settings)
    steps = []
    for step in range(8):
        # Norms from far below to far above the limit; one gradient is zero.
        matrix.grad = normal(20 + step, 3, 4) * 10 ** (step / 2 - 2)
        gain.grad = torch.zeros(5) if step == 3 else normal(40 + step, 5) * 10 ** (step / 2 - 2)
        gradients = [numbers(matrix.grad), numbers(gain.grad)]
        norm = torch.nn.utils.clip_grad_norm_([matrix, gain], 1.0).item()
        optimizer.step()
        steps.append(dict(gradients=gradients, norm=norm, parameters=[numbers(matrix), numbers(gain)]))
    return dict(
        lr=0.01, beta1=0.9, beta2=0.95, eps=1e-5, weight_decay=0.1, max_grad_norm=1.0, start=start, steps=steps
    )


# Whole training steps on the models of hf_parity.py. Sequences go through the model one at a time.

def tokens(seed, n):
    return torch.randint(1, 24, (n,), generator=generator(seed)).tolist()


def logprobs_of(model, sequence, n_prompt, temperature=1.0):
    logits = model(torch.tensor([sequence])).logits[0, n_prompt - 1 : -1] / temperature
    return -cross_entropy(logits, torch.tensor(sequence[n_prompt:]), reduction="none")


class ScalarModel(torch.nn.Module):
    """A decoder with a scalar at every position; HuggingFace's head has no bias."""

    def __init__(self, folder):
        super().__init__()
        model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
        self.decoder, self.head = model.base_model, model.score
        self.bias = torch.nn.Parameter(torch.zeros(1))

    def forward(self, sequence):
        hidden = self.decoder(torch.tensor([sequence])).last_hidden_state[0]
        return self.head(hidden)[:, 0] + self.bias

    def named(self):
        base = "transformer" if hasattr(self.decoder, "wte") else "model"
        yield from ((f"{base}.{name}", p) for name, p in self.decoder.named_parameters())
        yield from [("score.weight", self.head.weight), ("score.bias", self.bias)]


def language_model(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def optimizer_of(named, settings):
    """Weight decay is for matrices."""
    parameters = [p for _, p in named]
    decay = settings["weight_decay"]
    groups = [dict(params=[p], weight_decay=decay if p.dim() >= 2 else 0.0) for p in parameters]
    betas = (settings["adam_beta1"], settings["adam_beta2"])
    return torch.optim.AdamW(groups, lr=settings["lr"], betas=betas, eps=settings["adam_eps"]), parameters


def take_step(optimizer, parameters, lr, max_grad_norm):
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm).item()
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad()
    return norm


def digest(named):
    """Of each tensor: its sum, the sum of its squares, and its first three numbers."""
    return {name: [p.sum().item(), (p**2).sum().item(), *numbers(p.flatten()[:3])] for name, p in named}


# The same for all of them, with an epsilon at which no step depends on the sign of a gradient near zero.
OPTIM = dict(adam_beta1=0.9, adam_beta2=0.95, adam_eps=1e-3, weight_decay=0.1, max_grad_norm=1.0, lr=0.01)


def language_steps(folder):
    model = language_model(folder)
    optimizer, parameters = optimizer_of(model.named_parameters(), OPTIM)
    batches = [
        [dict(tokens=tokens(100 + 10 * step + i, 4 + 3 * i), n_prompt=1 + i) for i in range(3)] for step in range(3)
    ]
    losses, norms = [], []
    for batch in batches:
        n_tokens = sum(len(e["tokens"]) - e["n_prompt"] for e in batch)
        loss = -sum(logprobs_of(model, e["tokens"], e["n_prompt"]).sum() for e in batch) / n_tokens
        loss.backward()
        losses.append(loss.item())
        norms.append(take_step(optimizer, parameters, OPTIM["lr"], OPTIM["max_grad_norm"]))
    return dict(batches=batches, losses=losses, norms=norms, weights=digest(model.named_parameters()))


def reward_steps(folder):
    model = ScalarModel(folder)
    named = list(model.named())
    optimizer, parameters = optimizer_of(named, OPTIM)
    batches = [
        [
            dict(sequences=[tokens(200 + 30 * step + 9 * p + i, 5 + i) for i in range(len(ranks))], ranks=ranks)
            for p, ranks in enumerate([[1, 2], [2, 1, 3, 2]])
        ]
        for step in range(3)
    ]
    losses, norms = [], []
    for batch in batches:
        loss = 0.0
        for prompt in batch:
            scores = torch.stack([model(sequence)[-1] for sequence in prompt["sequences"]])
            k, ranks = len(scores), prompt["ranks"]
            pairs = [(w, l) for w in range(k) for l in range(k) if ranks[w] < ranks[l]]
            loss = loss - sum(logsigmoid(scores[w] - scores[l]) for w, l in pairs) / (k * (k - 1) / 2) / len(batch)
        loss.backward()
        losses.append(loss.item())
        norms.append(take_step(optimizer, parameters, OPTIM["lr"], OPTIM["max_grad_norm"]))
    return dict(batches=batches, losses=losses, norms=norms, weights=digest(named))


PPO = dict(
    OPTIM, temperature=0.7, clip_range=0.2, clip_range_value=0.3, value_coef=0.5, ptx_coef=2.0,
    n_epochs=3, minibatch_size=4, warmup_updates=1, value_lr=0.02, ema_decay=0.9, off_policy_weight_cap=1.5,
)


def ppo_updates(policy_folder, value_folder):
    """Two updates of PPO-ptx of 3 epochs, each epoch one step. In the second, half of the rollouts are stale."""
    policy, value = language_model(policy_folder), ScalarModel(value_folder)
    named_policy, named_value = list(policy.named_parameters()), list(value.named())
    policy_optimizer, policy_parameters = optimizer_of(named_policy, PPO)
    value_optimizer, value_parameters = optimizer_of(named_value, PPO)
    average = {name: p.detach().clone() for name, p in named_policy}
    shapes = [(3, 2), (4, 7), (2, 5), (5, 1)]  # prompt, response
    updates, step_idx = [], 0
    stale_logprobs = []
    for update in range(2):
        rollouts = []
        for i, (n_prompt, n_response) in enumerate(shapes):
            seed = 300 + 10 * i
            sequence = tokens(seed, n_prompt + n_response)
            with torch.no_grad():
                logprobs = logprobs_of(policy, sequence, n_prompt, PPO["temperature"])
                values = value(sequence)[n_prompt - 1 : -1]
            stale = update == 1 and i < 2
            # A rollout of the first update, sampled by the version before.
            logprobs = stale_logprobs[i] if stale else logprobs
            advantages = normal(400 + update * 10 + i, n_response)
            rollouts.append(
                dict(tokens=sequence, n_prompt=n_prompt, stale=stale, logprobs=logprobs, values=values,
                     advantages=advantages, returns=values + advantages)
            )
        stale_logprobs = [rollout["logprobs"] for rollout in rollouts]
        with torch.no_grad():
            for rollout in rollouts:
                recomputed = logprobs_of(policy, rollout["tokens"], rollout["n_prompt"], PPO["temperature"])
                rollout["proximal"] = recomputed if rollout["stale"] else rollout["logprobs"]
        n_tokens = sum(len(rollout["logprobs"]) for rollout in rollouts)
        texts = [[tokens(500 + 50 * update + 10 * e + i, 6 + 2 * i) for i in range(3)] for e in range(PPO["n_epochs"])]
        sums = dict.fromkeys(["policy_loss", "value_loss", "ptx_loss", "policy_norm", "value_norm", "clipped", "kl"], 0.0)
        for epoch in range(PPO["n_epochs"]):
            warmup = min(1.0, 0.1 + 0.9 * step_idx / PPO["n_epochs"])
            p_loss, v_loss = 0.0, 0.0
            for r in rollouts:
                new = logprobs_of(policy, r["tokens"], r["n_prompt"], PPO["temperature"])
                args = (r["proximal"], r["logprobs"], r["advantages"], PPO["clip_range"], PPO["off_policy_weight_cap"])
                p_loss = p_loss + policy_loss(new, *args).sum() / n_tokens
                new_values = value(r["tokens"])[r["n_prompt"] - 1 : -1]
                v_loss = v_loss + value_loss(new_values, r["values"], r["returns"], PPO["clip_range_value"]).sum() / n_tokens
                ratio = torch.exp(new - r["proximal"]).detach()
                gains, losses = (r["advantages"] > 0) & (ratio > 1.2), (r["advantages"] < 0) & (ratio < 0.8)
                sums["clipped"] += (gains | losses).sum().item() / n_tokens
                sums["kl"] += ((ratio - 1) - ratio.log()).sum().item() / n_tokens
            n_text = sum(len(text) - 1 for text in texts[epoch])
            ptx_loss = -sum(logprobs_of(policy, text, 1).sum() for text in texts[epoch]) / n_text
            (p_loss + PPO["ptx_coef"] * ptx_loss).backward()
            (PPO["value_coef"] * v_loss).backward()
            sums["policy_norm"] += take_step(policy_optimizer, policy_parameters, warmup * PPO["lr"], 1.0)
            sums["value_norm"] += take_step(value_optimizer, value_parameters, warmup * PPO["value_lr"], 1.0)
            step_idx += 1
            sums["policy_loss"] += p_loss.item()
            sums["value_loss"] += v_loss.item()
            sums["ptx_loss"] += ptx_loss.item()
            with torch.no_grad():
                for name, p in named_policy:
                    average[name] = PPO["ema_decay"] * average[name] + (1 - PPO["ema_decay"]) * p
        plain = lambda rollout: {k: numbers(v) if torch.is_tensor(v) else v for k, v in rollout.items() if k != "proximal"}
        updates.append(
            dict(rollouts=[plain(r) for r in rollouts], texts=texts,
                 means={name: total / PPO["n_epochs"] for name, total in sums.items()},
                 policy=digest(named_policy), value=digest(named_value), average=digest(average.items()))
        )
        assert update == 0 or sums["clipped"] > 0, "no ratio was clipped, so the clipping is not tested"
    return dict(settings=PPO, updates=updates)


def main():
    torch.set_num_threads(1)
    # Constant from the first step on, in the words of the configuration.
    optim = dict(OPTIM, lr_schedule="constant", warmup_steps=0)
    result = dict(
        optim=optim, ranking=ranking(), kl=kl(), adaptive_kl=adaptive_kl(), experience=experience(), ppo=ppo(), adamw=adamw(),
        language={name: language_steps(FIXTURES / "hf" / name) for name in ["gpt2", "llama"]},
        reward={name: reward_steps(FIXTURES / "hf" / f"{name}_score") for name in ["gpt2", "llama"]},
        ppo_updates={
            name: ppo_updates(FIXTURES / "hf" / name, FIXTURES / "hf" / f"{name}_score") for name in ["gpt2", "llama"]
        },
    )
    path = FIXTURES / "objectives.json"
    path.write_text(json.dumps(result, separators=(",", ":")) + "\n")
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
