"""What docs/results.md says of what was measured, whatever came out."""

from __future__ import annotations

HEAD = """# Results

**For research, not a medical device.** Nothing here says how well anybody's health can be told.

Made by `python -m benchmarks results` from the JSON files in `results/`, each written by the command that
stands with it. Seeds count from 0. Each run says of which code it is; one that does not, or whose settings
are not today's, is marked as measured before the recipe changed. All times are of two cores without a GPU,
shared with other work: each part says with how many threads. Ratios carry over better than absolute times,
and none of them to a machine with a GPU. Halves are rounded up."""

OLD = "**Measured before the recipe changed.**"
OF_NO_CODE = f"{OLD} At least, the file does not say by which code it was made."

READING = """R2 and RMSE are of all scans that were tested, by models that saw nobody who is in them.
Intervals are 95 %, from bootstrap draws of people and, where there are several, of seeds; *sd over seeds*
says how much a training's luck does, and every seed's own R2, ascending, stands beside the mean where
the run told it: a mean hides the seed that did not learn. Two processes of one thread share the cells of
a case, and times are seconds of the processor. One training of an encoder is read in several ways:
`random_voxels` (pooled moments of random voxels), `cpic` (a QTT of rank 10, by a ridge on the train
itself, its kernel), by its first principal features or its moments alone, `cpic TT` (a TT instead),
`cpic TT + overview` (with the scan's block means beside the train, for which the whole scan is read),
and `cpic own head`, the head that descended with the encoder. A `frozen` encoder was never trained. The
others see no encoder: `constant` (the training's mean), `tabular` (covariates alone), `voxel_ridge`
(means of blocks), `tt_ridge` and `tt_mlp` (principal features of trains of intensities), `resnet3d` (a
dense 3-D ResNet-34). `cpic, paper's form, own head` is the paper's encoder, QTT and perceptron, learned
through trains from a random start; `the paper's encoder and QTT, our closed-form head` the same with
another answer. Neither is C-PIC as published to the letter: see departures 16 to 18 of
`models/cpic/PAPER.md`. `given measures` are not of the scan, `intensities` are its statistics by halves.
*MiB* is memory above the start, of all readings of an encoder together. `X, together` is the mean answer
of all seeds of X: what `cpic_ensemble` gives, which has as many members. `auto` takes the simplest that
none beats beyond its interval."""

DIFFERENCES = """Both told the same rows, and the bootstrap draws the same people for both. The best simple
regressor is known only after the test, which favours it."""

SPREAD = """A fine texture involves a graded share of the left half of the brain; that share, counted
exactly, is the target. The right half carries the same texture as a decoy, the rest noise of equal
variance and equal block means: neither intensities nor anything coarser than two voxels tell the target
(`benchmarks/cohorts/textures.py`). The volumes are of 33 people (real heads where they are at hand,
phantoms otherwise), and nobody is on both sides of a split. The change is synthetic: this is no clinical
score. Cohorts are drawn with seed 1; recipes were developed on seed 0, which asks about other people."""

SPOTS = """Sparse lesions and decoys two voxels wide; the target is which share of the lesions lies near
the ventricles. Nearly every voxel is silent, which is the known hard case of any sparse sampler.
Synthetic, too."""

CONTROLS = """Readers without an encoder: ridge regression on what each tells. Most find nothing, and two
kinds do: the oracles, which know how volumes are made, and *roughness per half*, at full resolution or of
every second voxel: mean square differences of neighbours, six numbers that nobody had to learn, but that had
to be thought of. That much of *spread* can be had so; what an encoder is worth is what it finds beyond. One
thread."""

REAL = """Small samples, which support no claim about a health indicator: they show whether a regressor
beats simple ones on real data. Five folds by person. Each cohort has a trap."""

TRAPS = {
    "ixi_age": """33 T1 heads; age in years, sex as a covariate. The trap: the youngest have another raw
intensity scale, a flag that by itself tells age better than anatomy does (leave-one-out R2 .70 over 50
heads, as the collection's notes have it). Every head is therefore standardised by its own intensities.""",
    "ixi_age-late": """The heads of one intensity scale alone (`intensity_scale_group=late`), so that the
flag tells nothing. They are few: look at the intervals.""",
    "hippocampus": """140 T1 crops; the volume of the hippocampus in mm3. The traps: crops were made to
fit, and their sides alone tell the volume (R2 .23 on other people, as the notes have it); scales of
intensity differ wildly. All crops are padded to one size, and scaled by quantiles of their own.""",
    "soop": """240 masks of stroke lesions; the stroke scale (NIHSS) in points, with age and sex as
covariates. The trap: log lesion volume and age alone reach R2 .22 on other people, as the notes have it;
whatever reads the mask must beat that.""",
}

ABOUT = {
    "spread-32": "32^3.",
    "spread-32-folds": "32^3, five folds by person instead of one split.",
    "spread-32-baselines": "32^3: the dense network; the paper's encoder, QTT and perceptron.",
    "spread-32-variants": "32^3: one thing of the recipe changed at a time.",
    "spread-64": "The same regions at 64^3.",
    "spread-128": "The same regions at 128^3, where reading everything is no longer cheap.",
    "spots-64": "64^3. `guided`: voxels are drawn where scans are rough.",
    **TRAPS,
}

VOXELS = "At which price in voxels; the one that reads all of a scan stands at the right."
SIZES = "The same task, whatever the resolution: bands are 95 % intervals."

INTERVALS = """Split-conformal intervals of linear heads, on 20 splits by patient, and on 200, which tell
the method from the luck of 20. Read are block means, which know nothing of the made targets, and the
oracle's features, which do: coverage must not depend on it. *noise* is the standard deviation from one 20
splits to the next, *constant* the width of intervals about the training's mean, CV+ the other method, on
those who train or calibrate, in 10 folds. One thread; nothing here is a time."""

SHIPPED = """What the product ships is neither: `train` takes thresholds from answers out of 5 folds and
applies them to a model of all rows, which has no guarantee. The same 20 splits, whoever is not asked about
being the cohort; `auto` takes one of the recipes above it by itself. *Its own q.2 to q.8* are those of a
quantile task, before they are widened. `cpic` was measured on few splits, in which everybody is asked about
once, with a shorter training than its default."""

PREDICT = """One stored scan that nobody has read yet: open, prepare, answer (cold), and once more (warm);
medians of processes. `cpic` tells the answer alone; `cpic_look` what the product tells, with certificate,
saliency and distance beside it. Two threads: `cpic` has one of torch's and two to read, `resnet3d` two of
torch's; it reads the whole scan and runs once through it. Hollow points, and sums in brackets, are estimates
by voxels. Files lie in the operating system's cache."""

TRAIN = """One step, forward and backward, of a batch of scans that lie in the operating system's cache;
medians of 3 steps, and one of the dense network. Two threads: C-PIC has one of torch's and two to read,
`resnet3d` two of torch's, which halves its seconds at best. Other work may have been on the cores: compare
`cpu_s` with `step_s`. `paper` is a step of the paper's encoder, QTT and perceptron. The dense network has the
largest batch that fits; its scans were read before."""

RATES = """Real CT and MR, and MR over time, whole; none of these scans was used for a table of `putt`, and
nothing was tuned to them. Ratios are source bytes over all bytes of a file; the peak of a PSNR is the scan's
range, so that levels of different scans do not compare. PSNR at a ratio stands between two files by its
logarithm. `tt_svd` and `tucker` hold float32 numbers, JPEG 2000 and JPEG XL code slice by slice, `temporal`
puts a tensor core of the time axis before `putt`. One thread; seconds are the processor's, of the file
nearest to 20:1. The vertical line is the best file without loss. *quantised_over_float32* is of a block of
64^3; *coder_over_lzma* of the integers of all blocks at about 20:1; *auto_over_best* of the PSNR that the
best has at 20:1; *temporal_over_frames* of one PSNR, that of `putt` at 10:1. No train stage that we tried
beats good transform coding on a single volume (where `putt` is ahead at high ratios, its rivals code slices
by themselves): trains are here for what can be computed with them, for levels, boxes, gaps and noise, and for
the time axis."""

BOUNDS = """No voxel's error is larger than the bound; 0 loses nothing. Every voxel of what the file decodes
to was compared. Beside each size stands that of the best lossless compressor of the integers that say where
values are to within the bound (hollow). One thread."""

SPECTRAL = """Classifiers of CIFAR-10 (JPEG) with STTP or SVDP weights in every convolution and linear layer,
of one rank: SVDP has the largest that the budget allows, STTP the largest that needs no more numbers.
*over_bound* is of the largest singular value of any layer after any step of a small SNGAN's discriminator;
*kept* is the mean of a layer's singular values over its largest, at the end over that at the start, in the
worst layer; *certificate* bounds the discriminator's Lipschitz constant. In the figure each line is a
singular value, the largest is dark, and the dotted line is the bound. Adam's rate is five times the paper's,
so that hundreds of steps show what takes thousands. One thread."""

CURVES = "Mean losses by epoch, each named by its run; dashed, where people were held out, theirs."
NO_CURVES = "Not measured: no run told how its training went."

LOOKS = """Middle slices of one *spread* volume of a phantom (of the left half, in the sagittal one), whose
person the model did not see. Above, outlined, where the texture truly is: left, what is asked for, and
right (dashed) the decoy. Below, gradient times value at the voxels that `cpic` read near the slice: red
pushes the answer up, blue down; areas are in proportion. It is no segmentation: voxels stand in rows
because they are read in fibres."""
