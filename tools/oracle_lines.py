"""The lines of the table of agreement: our calls, the libraries' calls, what a walk leaves out.

``oracles`` says what the names in the calls mean, and runs them.
"""

from __future__ import annotations

from oracles import FUSED, LOOPS, Bite, Disagreement, Line, State

L2 = "weight_decay=λ"
EPS = "eps=ε, weight_decay=λ"
KERAS = "epsilon=ε, weight_decay=λ"
KERAS2 = "epsilon=κ, weight_decay=λ"
MOMENTUM = "momentum=0.9, weight_decay=λ"
DECAYED = "optax.chain(optax.add_decayed_weights(λ), "

SGD = [
    Line(f"SGD(p, {L2})", f"torch.optim.SGD(p, {L2})", FUSED),
    Line(f"SGD(p, {MOMENTUM})", f"torch.optim.SGD(p, {MOMENTUM})", LOOPS),
    Line(f"SGD(p, {MOMENTUM})", f"torch.optim.SGD(p, {MOMENTUM}, fused=True)", gaps=False),
    Line(
        f"SGD(p, {MOMENTUM}, dampening=0.4)",
        f"torch.optim.SGD(p, {MOMENTUM}, dampening=0.4)",
        LOOPS,
    ),
    Line(
        f'SGD.like("lua", p, {MOMENTUM})', f"torch.optim.SGD(p, {MOMENTUM}, dampening=0.9)", LOOPS
    ),
    Line(
        f"SGD(p, {MOMENTUM}, nesterov=True)",
        f"torch.optim.SGD(p, {MOMENTUM}, nesterov=True)",
        LOOPS,
    ),
    Line(f'SGD.like("optax", p, {L2})', f"{DECAYED}optax.sgd(η))", gaps=False),
    Line(f'SGD.like("optax", p, {MOMENTUM})', f"{DECAYED}optax.sgd(η, momentum=0.9))", gaps=False),
    Line(
        f'SGD.like("optax", p, {MOMENTUM}, nesterov=True)',
        f"{DECAYED}optax.sgd(η, momentum=0.9, nesterov=True))",
        gaps=False,
    ),
    Line(
        f'SGD(p, {MOMENTUM}, lr_placement="inside")',
        f"{DECAYED}optax.scale_by_learning_rate(η), optax.trace(0.9))",
        gaps=False,
    ),
    Line(
        f'SGD(p, {MOMENTUM}, nesterov=True, lr_placement="inside")',
        f"{DECAYED}optax.scale_by_learning_rate(η), optax.trace(0.9, nesterov=True))",
        gaps=False,
    ),
    Line(
        f'SGD(p, {MOMENTUM}, dampening="momentum", first_buffer="dampened")',
        f"{DECAYED}optax.ema(0.9, debias=False), optax.scale_by_learning_rate(η))",
        gaps=False,
    ),
    Line(f'SGD.like("keras", p, {L2})', f"keras.optimizers.SGD({L2})"),
    Line(f'SGD.like("keras", p, {MOMENTUM})', f"keras.optimizers.SGD({MOMENTUM})"),
    Line(
        f'SGD.like("keras", p, {MOMENTUM}, nesterov=True)',
        f"keras.optimizers.SGD({MOMENTUM}, nesterov=True)",
    ),
    Line(
        f'SGD(p, {MOMENTUM}, decay="decoupled")',
        f"timm.optim.SGDW(p, {MOMENTUM})",
        LOOPS,
    ),
    Line(f'SGD(p, {MOMENTUM}, decay="decoupled")', f"pytorch_optimizer.SGDW(p, {MOMENTUM})"),
]

ADAPTIVE = [
    Line(
        f"Adagrad(p, {EPS}, lr_decay=0.05)", f"torch.optim.Adagrad(p, {EPS}, lr_decay=0.05)", FUSED
    ),
    Line(
        f"Adagrad(p, {EPS}, initial_accumulator_value=κ)",
        f"torch.optim.Adagrad(p, {EPS}, initial_accumulator_value=κ)",
        FUSED,
    ),
    Line(
        f'Adagrad.like("optax", p, eps=κ, {L2}, initial_accumulator_value=κ)',
        f"{DECAYED}optax.adagrad(η, initial_accumulator_value=κ, eps=κ))",
        gaps=False,
    ),
    Line(
        f'Adagrad.like("keras", p, eps=κ, {L2}, initial_accumulator_value=κ)',
        f"keras.optimizers.Adagrad({KERAS2}, initial_accumulator_value=κ)",
    ),
    Line(f"RMSprop(p, {EPS})", f"torch.optim.RMSprop(p, {EPS})", LOOPS),
    Line(f"RMSprop(p, {EPS}, momentum=0.9)", f"torch.optim.RMSprop(p, {EPS}, momentum=0.9)", LOOPS),
    Line(
        f"RMSprop(p, {EPS}, centered=True)", f"torch.optim.RMSprop(p, {EPS}, centered=True)", LOOPS
    ),
    Line(
        f"RMSprop(p, {EPS}, momentum=0.9, centered=True)",
        f"torch.optim.RMSprop(p, {EPS}, momentum=0.9, centered=True)",
        LOOPS,
    ),
    Line(
        f'RMSprop(p, {EPS}, alpha=0.9, momentum=0.9, lr_placement="inside")',
        f"{DECAYED}optax.rmsprop(η, eps=ε, momentum=0.9, eps_in_sqrt=False))",
        gaps=False,
    ),
    Line(
        f'RMSprop.like("optax", p, eps=κ, {L2}, momentum=0.9, centered=True)',
        f"{DECAYED}optax.rmsprop(η, eps=κ, momentum=0.9, centered=True))",
        gaps=False,
    ),
    Line(
        f'RMSprop.like("optax", p, eps=κ, {L2}, bias_correction=True)',
        f"{DECAYED}optax.rmsprop(η, eps=κ, bias_correction=True))",
        gaps=False,
    ),
    Line(
        f'RMSprop.like("tensorflow-1", p, eps=κ, {MOMENTUM})',
        f"{DECAYED}optax.rmsprop(η, eps=κ, momentum=0.9, initial_scale=1.0))",
        gaps=False,
    ),
    Line(
        f'RMSprop.like("tensorflow-1", p, eps=κ, {MOMENTUM})',
        f"timm.optim.RMSpropTF(p, eps=κ, {MOMENTUM})",
    ),
    Line(
        f'RMSprop.like("tensorflow-1", p, eps=κ, {MOMENTUM}, centered=True)',
        f"timm.optim.RMSpropTF(p, eps=κ, {MOMENTUM}, centered=True)",
    ),
    Line(f'RMSprop.like("keras", p, eps=κ, {L2})', f"keras.optimizers.RMSprop({KERAS2})"),
    Line(
        f'RMSprop.like("keras", p, eps=κ, {MOMENTUM}, centered=True)',
        f"keras.optimizers.RMSprop({KERAS2}, momentum=0.9, centered=True)",
    ),
    Line(f"Adadelta(p, eps=κ, {L2})", f"torch.optim.Adadelta(p, eps=κ, {L2})", LOOPS),
    Line(
        f'Adadelta.like("optax", p, eps=κ, {L2})',
        f"{DECAYED}optax.adadelta(η, rho=0.9, eps=κ))",
        gaps=False,
    ),
    Line(f'Adadelta.like("keras", p, eps=κ, {L2})', f"keras.optimizers.Adadelta({KERAS2})"),
    Line(f"Adadelta(p, eps=κ, {L2})", f"pytorch_optimizer.AdaDelta(p, eps=κ, {L2})"),
]

BERT = 'Adam.like("bert", p, eps=ε, weight_decay=λ, exclude=None, clip=None)'
C1, C2 = "(1 - 0.9**t)", "(1 - 0.999**t) ** 0.5"

ADAM = [
    Line(f"Adam(p, {EPS})", f"torch.optim.Adam(p, {EPS})", FUSED),
    Line(
        f"Adam(p, betas=(0.85, 0.99), {EPS})",
        f"torch.optim.Adam(p, betas=(0.85, 0.99), {EPS})",
        FUSED,
    ),
    Line(f'Adam.like("optax", p, {EPS})', f"{DECAYED}optax.adam(η, eps=ε))", gaps=False),
    Line(
        f'Adam(p, eps=κ, {L2}, eps_placement="inside")',
        f"{DECAYED}optax.adam(η, eps=0.0, eps_root=κ))",
        gaps=False,
    ),
    Line(f'Adam.like("keras", p, {EPS})', f"keras.optimizers.Adam({KERAS})", gaps=False),
    Line(
        f'Adam(p, {EPS}, eps_placement="hat")',
        f"torch.optim.Adam(p, eps=ε / {C2}, {L2})",
        gaps=False,
    ),
    Line(BERT, f"torch_optimizer.Lamb(p, adam=True, debias=False, {EPS})"),
    Line(
        BERT,
        "pytorch_optimizer.Lamb(p, adam=True, adam_debias=True, pre_norm=False, "
        f"weight_decouple=False, {EPS})",
    ),
    Line(
        BERT,
        f"torch.optim.AdamW(p, lr=η * {C1} / {C2}, eps=ε / {C2}, weight_decay=λ * {C2} / {C1})",
        gaps=False,
    ),
    Line(f"AdamW(p, {EPS})", f"torch.optim.AdamW(p, {EPS})", FUSED),
    Line(f'AdamW.like("optax", p, {EPS})', f"optax.adamw(η, {EPS})", gaps=False),
    Line(f'AdamW.like("keras", p, {EPS})', f"keras.optimizers.AdamW({KERAS})", gaps=False),
    Line(f"AdamW(p, {EPS})", f"timm.optim.AdamWLegacy(p, {EPS})"),
    Line(f"AdamW(p, {EPS})", f"pytorch_optimizer.AdamW(p, {EPS})"),
    Line(
        'AdamW(p, lr=0.02, eps=ε, weight_decay=0.02 * λ, decay="paper")',
        f"torch.optim.AdamW(p, {EPS})",
        FUSED,
    ),
]

FAMILY = [
    Line(f"AMSGrad(p, {EPS})", f"torch.optim.Adam(p, {EPS}, amsgrad=True)", FUSED),
    Line(
        f'AMSGrad(p, {EPS}, decay="decoupled")',
        f"torch.optim.AdamW(p, {EPS}, amsgrad=True)",
        FUSED,
    ),
    Line(f'AMSGrad.like("optax", p, {EPS})', f"{DECAYED}optax.amsgrad(η, eps=ε))", gaps=False),
    Line(
        f'AMSGrad.like("paper", p, {EPS})',
        f"{DECAYED}optax.amsgrad(η, eps=ε, bias_correction_mu=False, bias_correction_nu=False))",
        gaps=False,
    ),
    Line(
        f'AMSGrad.like("keras", p, {EPS})',
        f"keras.optimizers.Adam({KERAS}, amsgrad=True)",
        gaps=False,
    ),
    Line(f"AdaMax(p, {EPS})", f"torch.optim.Adamax(p, {EPS})", LOOPS),
    Line(f'AdaMax.like("optax", p, {EPS})', f"{DECAYED}optax.adamax(η, eps=ε))", gaps=False),
    Line(f'AdaMax.like("keras", p, {EPS})', f"keras.optimizers.Adamax({KERAS})", gaps=False),
    Line(f"AdaMax(p, {EPS})", f"pytorch_optimizer.AdaMax(p, {EPS})", gaps=False),
    Line(f"NAdam(p, {EPS})", f"torch.optim.NAdam(p, {EPS})", LOOPS, wide=True),
    Line(
        f'NAdam(p, {EPS}, decay="decoupled")',
        f"torch.optim.NAdam(p, {EPS}, decoupled_weight_decay=True)",
        LOOPS,
        wide=True,
    ),
    Line(f'NAdam.like("optax", p, {EPS})', f"{DECAYED}optax.nadam(η, eps=ε))", gaps=False),
    Line(f'NAdam.like("keras", p, {EPS})', f"keras.optimizers.Nadam({KERAS})", gaps=False),
    Line(f'NAdam.like("timm", p, {EPS})', f"timm.optim.NAdamW(p, {EPS})", LOOPS),
    Line(f"NAdam(p, {EPS})", f"timm.optim.NAdamLegacy(p, {EPS})"),
    Line(f"RAdam(p, {EPS})", f"torch.optim.RAdam(p, {EPS})", LOOPS),
    Line(
        f'RAdam(p, {EPS}, decay="decoupled")',
        f"torch.optim.RAdam(p, {EPS}, decoupled_weight_decay=True)",
        LOOPS,
    ),
    Line(f'RAdam.like("optax", p, {EPS})', f"{DECAYED}optax.radam(η, eps=ε))", gaps=False),
    Line(f'RAdam.like("authors", p, {EPS})', f"pytorch_optimizer.RAdam(p, {EPS})", gaps=False),
]

GIVEN = 'eps=(κ, 0.001), weight_decay=λ, rate="given"'
RELATIVE = "eps=(κ, 0.001), weight_decay=λ"
THEIRS = "eps=(κ, 0.001), weight_decay=λ, relative_step=False"
RMS = (
    "optax.scale_by_factored_rms(min_dim_size_to_factor=2, epsilon=κ, "
    "decay_rate_fn=lambda i, a: 1 - (i + 1.0) ** -a)"
)

ADAFACTOR = [
    Line(
        f"Adafactor(p, {RELATIVE})",
        f"transformers.optimization.Adafactor(p, {RELATIVE})",
        held=True,
    ),
    Line(
        f'Adafactor(p, {RELATIVE}, rate="warmup")',
        f"transformers.optimization.Adafactor(p, {RELATIVE}, warmup_init=True)",
        held=True,
    ),
    Line(f"Adafactor(p, {GIVEN})", f"transformers.optimization.Adafactor(p, lr=η, {THEIRS})"),
    Line(
        f"Adafactor(p, {GIVEN}, beta1=0.9)",
        f"transformers.optimization.Adafactor(p, lr=η, {THEIRS}, beta1=0.9)",
    ),
    Line(
        f'Adafactor.like("transformers-trainer", p, {RELATIVE})',
        f"transformers.optimization.Adafactor(p, lr=η, {THEIRS}, scale_parameter=False)",
    ),
    Line(
        f'Adafactor.like("torch", p, eps=(ε, 0.001), {L2})',
        f"torch.optim.Adafactor(p, eps=(ε, 0.001), {L2})",
        LOOPS,
    ),
    Line(  # with a rate of 1 the limit of 1 / sqrt(t) rules in every step
        f'Adafactor.like("torch", p, lr=1.0, eps=(ε, 0.001), {L2})',
        f"torch.optim.Adafactor(p, lr=1.0, eps=(ε, 0.001), {L2})",
        LOOPS,
        held=True,
    ),
    Line(
        'Adafactor(p, eps=(0.0, 0.001), weight_decay=λ, decay="lr")',
        f"torch.optim.Adafactor(p, eps=(0.0, 0.001), {L2})",
        LOOPS,
    ),
    Line(
        f'Adafactor.like("optax", p, {RELATIVE}, min_dim_size_to_factor=2)',
        f"optax.chain({RMS}, optax.clip_by_block_rms(1.0), optax.scale_by_schedule(η), "
        "optax.scale_by_param_block_rms(), optax.add_decayed_weights(λ), optax.scale(-1.0))",
        gaps=False,
    ),
    Line(
        f"Adafactor(p, {GIVEN}, scale_parameter=False, min_dim_size_to_factor=5)",
        f"timm.optim.Adafactor(p, lr=η, eps=κ, {L2}, min_dim_size_to_factor=4)",
    ),
    Line(
        f"Adafactor(p, {RELATIVE}, min_dim_size_to_factor=5)",
        f"timm.optim.Adafactor(p, eps=κ, {L2}, min_dim_size_to_factor=4)",
        held=True,
    ),
    Line(
        f'Adafactor(p, {GIVEN}, scale_parameter=False, factor="largest", decay="lr")',
        f"timm.optim.AdafactorBigVision(p, eps=κ, {L2}, min_dim_size_to_factor=0, momentum=None, "
        "clipping_threshold=1.0)",
    ),
    Line(
        f"Adafactor(p, {RELATIVE})",
        "pytorch_optimizer.AdaFactor(p, lr=0.01, betas=(None, 0.999), eps1=κ, eps2=0.001, "
        "weight_decay=λ)",
        gaps=False,
        held=True,
    ),
]

CLIPPED = [
    Line(
        f'SGD(p, clip=c, clip_form="torch", {L2})',
        f"torch.optim.SGD(p, {L2})",
        LOOPS,
        before="torch.nn.utils.clip_grad_norm_(p, c)",
    ),
    Line(
        f'AdamW(p, clip=c, clip_form="torch", {EPS})',
        f"torch.optim.AdamW(p, {EPS})",
        FUSED,
        before="torch.nn.utils.clip_grad_norm_(p, c)",
    ),
    Line(
        f"SGD(p, clip=c, {L2})",
        "optax.chain(optax.clip_by_global_norm(c), optax.add_decayed_weights(λ), optax.sgd(η))",
        gaps=False,
    ),
    Line(
        'Adam.like("bert", p, eps=ε, weight_decay=λ, exclude=None, clip=c, clip_form="torch")',
        f"torch_optimizer.Lamb(p, adam=True, debias=False, {EPS})",
        before="torch.nn.utils.clip_grad_norm_(p, c)",
    ),
]

AVERAGES = [
    Line(
        "EMA(p, 0.99)",
        "torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99))",
    ),
    Line("EMA(p, 0.99)", "keras.optimizers.SGD(use_ema=True, ema_momentum=0.99)"),
    Line('EMA(p, 0.99, start="zero")', "optax.ema(0.99, debias=True)"),
]

HF = "transformers.get_"
SCHEDULES = [
    Line('course("constant", warmup=W)', f"{HF}constant_schedule_with_warmup(o, W)"),
    Line('course("linear", steps=N, warmup=W)', f"{HF}linear_schedule_with_warmup(o, W, N)"),
    Line(
        'course("linear", steps=N, warmup=W)',
        "optax.join_schedules([optax.linear_schedule(0.0, 1.0, W), "
        "optax.linear_schedule(1.0, 0.0, N - W)], [W])",
    ),
    Line('course("cosine", steps=N, warmup=W)', f"{HF}cosine_schedule_with_warmup(o, W, N)"),
    Line(
        'course("cosine", steps=N, warmup=W, floor=0.1)',
        f"{HF}cosine_with_min_lr_schedule_with_warmup(o, W, N, min_lr_rate=0.1)",
    ),
    Line(
        'course("cosine", steps=N, warmup=W, floor=0.1)',
        "optax.warmup_cosine_decay_schedule(0.0, 1.0, W, N, 0.1)",
    ),
    Line(
        'course("cosine", steps=N, floor=0.1)',
        "torch.optim.lr_scheduler.CosineAnnealingLR(o, N, 0.1)",
    ),
    Line(
        'course("polynomial", steps=N, warmup=W, power=2.0, floor=0.1)',
        f"{HF}polynomial_decay_schedule_with_warmup(o, W, N, lr_end=0.1, power=2.0)",
    ),
    Line(
        'course("polynomial", steps=N, power=2.0)',
        "torch.optim.lr_scheduler.PolynomialLR(o, N, 2.0)",
    ),
    Line('course("inverse_sqrt", warmup=W)', f"{HF}inverse_sqrt_schedule(o, W)"),
    Line(
        'course("inverse_sqrt", warmup=W, timescale=40)',
        f"{HF}inverse_sqrt_schedule(o, W, timescale=40)",
    ),
    Line(
        'course("wsd", steps=N, warmup=W, decay=D, floor=0.1, start=0.1)',
        f"{HF}wsd_schedule(o, W, D, N, min_lr_ratio=0.1)",
    ),
    Line(
        'course("wsd", steps=N, warmup=W, decay=D, shape="1-sqrt")',
        f'{HF}wsd_schedule(o, W, D, N, decay_type="1-sqrt")',
    ),
    Line(
        'course("bert", steps=N, warmup=W)',
        "optax.join_schedules([optax.linear_schedule(0.0, 1.0, W), "
        "optax.linear_schedule(1.0 - W / N, 0.0, N - W)], [W])",
    ),
    Line(
        'course("electra", steps=N, warmup=W)',
        "optax.linear_schedule(0.0, 1.0, W)(t) * optax.linear_schedule(1.0, 0.0, N)(t)",
    ),
    Line(
        'course("gpt1", steps=N, fraction=W / N)',
        "optax.linear_schedule(0.0, 1.0, W)(t) * optax.linear_schedule(1.0, 0.0, N)(t)",
    ),
    Line(
        'course("noam", width=512, warmup=W)',
        f"{HF}inverse_sqrt_schedule(o, W).lr_lambdas[0](t + 1) * (512 * W) ** -0.5",
    ),
    Line(
        'course("t5", warmup=W)',
        f"{HF}inverse_sqrt_schedule(o, W).lr_lambdas[0](max(t, W)) * W**-0.5",
    ),
]

LINES = [*SGD, *ADAPTIVE, *ADAM, *FAMILY, *ADAFACTOR, *CLIPPED, *AVERAGES, *SCHEDULES]

PARTINGS = [
    Disagreement(
        Line(f"SGD(p, {MOMENTUM})", f"torch.optim.SGD(p, {MOMENTUM}, fused=True)"),
        "The fused kernel wants all momentum buffers to begin at the same step. Here one parameter "
        "has no gradient at the first step.",
    ),
    Disagreement(
        Line(f'SGD(p, {MOMENTUM}, decay="decoupled")', f"torch_optimizer.SGDW(p, {MOMENTUM})"),
        "It takes `lr * weight_decay` off every weight, where it should take off that part of the "
        "weight.",
    ),
    Disagreement(
        Line(
            f'SGD.like("keras", p, clip=c, {L2})', f"keras.optimizers.SGD(global_clipnorm=c, {L2})"
        ),
        "On torch `keras.ops.minimum` and `keras.ops.maximum` return float32, and the factor goes "
        "through the first of them.",
    ),
    Disagreement(
        Line(f"NAdam(p, {EPS})", f"torch.optim.NAdam(p, {EPS})", LOOPS),
        "The product of the momenta is kept in torch's default precision. With "
        "`torch.set_default_dtype(torch.float64)` the two agree.",
    ),
    Disagreement(
        Line(f"AdaMax(p, {EPS})", f"pytorch_optimizer.AdaMax(p, {EPS})"),
        "It counts steps by group and not by parameter, so a missing gradient spoils the bias "
        "correction. Its RAdam and AdaFactor do the same. Without gaps the three agree.",
    ),
    Disagreement(
        Line(f'RAdam(p, {EPS}, decay="decoupled")', f"timm.optim.RAdamLegacy(p, {EPS})"),
        "State and arithmetic are float32 whatever the parameters are.",
    ),
    Disagreement(
        Line(f'RAdam(p, {EPS}, decay="decoupled")', f"torch_optimizer.RAdam(p, {EPS})", gaps=False),
        "State and arithmetic are float32 whatever the parameters are.",
    ),
    Disagreement(
        Line(
            'Adafactor.like("optax", p, eps=(κ, 0.001), min_dim_size_to_factor=2)',
            "optax.adafactor(η, min_dim_size_to_factor=2, eps=κ)",
            gaps=False,
        ),
        "The decay rate of the second moments is computed in float32. Built out of its links with "
        "a float64 one, the same chain agrees.",
    ),
    Disagreement(
        Line(
            f"Adafactor(p, {RELATIVE})",
            "torch_optimizer.Adafactor(p, eps2=(κ, 0.001), weight_decay=λ)",
            held=True,
        ),
        "The mean over the rows loses an axis. Tensors of rank 3 do not fit then, or, where their "
        "first two axes are equally long, are divided by the wrong means.",
    ),
    Disagreement(
        Line(
            "Adafactor(p, eps=(κ, 0.001))",
            "keras.optimizers.Adafactor(epsilon_1=κ)",
            gaps=False,
        ),
        "`keras.ops.maximum` again: the size of the update goes through float32.",
    ),
    Disagreement(
        Line(
            f'Adafactor(p, eps=(κ, 0.001), {L2}, decay="lr")',
            f"keras.optimizers.Adafactor(epsilon_1=κ, {L2})",
            gaps=False,
        ),
        "Decay comes first in Keras, and the size of the parameter is taken after it.",
    ),
]

BITES = [
    Bite(
        "ε = 1e-3, not 1e-8",
        "ε before the bias correction",
        Line(f"Adam(p, {EPS})", f'Adam(p, {EPS}, eps_placement="hat")'),
        "small ε",
    ),
    Bite(
        "a rate that varies",
        "the rate inside the momentum",
        Line(f"SGD(p, {MOMENTUM})", f'SGD(p, {MOMENTUM}, lr_placement="inside")'),
        "constant rate",
    ),
    Bite(
        "decay",
        "L2 for decoupled decay",
        Line(f"AdamW(p, {EPS})", f"Adam(p, {EPS})"),
        "no decay",
    ),
    Bite(
        "missing gradients",
        "steps counted by group",
        Line(f"AdaMax(p, {EPS})", f"pytorch_optimizer.AdaMax(p, {EPS})"),
        "no gaps",
    ),
    Bite(
        "gradients down to 1e-8",
        "ε₁ left at the machine's epsilon",
        Line("Adafactor(p, eps=(0.0, 0.001))", "torch.optim.Adafactor(p)"),
        "larger gradients",
    ),
    Bite(
        "tensors of rank 3",
        "a mean that loses an axis",
        Line(
            "Adafactor(p, eps=(κ, 0.001))",
            "torch_optimizer.Adafactor(p, eps2=(κ, 0.001))",
            held=True,
        ),
        "no rank 3",
    ),
]

STATES = [
    State("SGD(p)", "0", "torch.optim.SGD(p)"),
    State("SGD(p, momentum=0.9)", "n * m", "torch.optim.SGD(p, momentum=0.9)"),
    State("Adagrad(p)", "n * m", "torch.optim.Adagrad(p)"),
    State("RMSprop(p)", "n * m", "torch.optim.RMSprop(p)"),
    State(
        "RMSprop(p, momentum=0.9, centered=True)",
        "3 * n * m",
        "torch.optim.RMSprop(p, momentum=0.9, centered=True)",
    ),
    State("Adadelta(p)", "2 * n * m", "torch.optim.Adadelta(p)"),
    State("Adam(p)", "2 * n * m", "torch.optim.Adam(p)"),
    State("AdamW(p)", "2 * n * m", "torch.optim.AdamW(p)"),
    State("AMSGrad(p)", "3 * n * m", "torch.optim.Adam(p, amsgrad=True)"),
    State("AdaMax(p)", "2 * n * m", "torch.optim.Adamax(p)"),
    State("NAdam(p)", "2 * n * m", "torch.optim.NAdam(p)"),
    State("RAdam(p)", "2 * n * m", "torch.optim.RAdam(p)"),
    State("Adafactor(p)", "n + m", "torch.optim.Adafactor(p)"),
    State("Adafactor(p)", "n + m", "transformers.optimization.Adafactor(p)"),
    State("Adafactor(p)", "n + m", "timm.optim.Adafactor(p)"),
    State("Adafactor(p)", "n + m", "keras.optimizers.Adafactor()"),
    State("Adafactor(p, beta1=0.9)", "n * m + n + m", "pytorch_optimizer.AdaFactor(p)"),
    State('Adafactor(p, factor="none")', "n * m", "optax.adafactor(0.01, factored=False)"),
]
