"""The mutations of `benchmarks.mutations`. A row has a text that occurs once in its file, the replacement, and the tests that
must fail.

A mutation is a mistake that raises no error: a sign, an axis, a factor, a mask, a seed, a temperature, a number that is one too
large. The tests are the narrowest ones that detect it.
"""

# fmt: off
LAW = "tests/samplers/test_law.py::test_every_rule_samples_its_exact_law"
TOKENS = "tests/samplers/test_law.py::test_token_rules_sample_the_transformed_law"
GUARANTEES = "tests/samplers/test_guarantees.py::test_"
BUDGET = "tests/samplers/test_budget.py::test_"
CONFIDENCE = "tests/samplers/test_sampled_confidence.py::test_"
FORCED = "tests/samplers/test_teacher_forced.py::test_"
PROMPTS = "tests/samplers/test_prompts.py::test_"
PADDED = PROMPTS + "a_padded_row_is_the_row_alone"
SIBLINGS = "tests/samplers/test_siblings.py::test_"
BEST_OF = "tests/samplers/test_best_of.py::test_"
ENDS = "tests/dlm/test_ends.py::test_"
CAUSAL = "tests/dlm/test_causal.py::test_"
INVARIANCE = "tests/samplers/test_invariance.py::test_"
SMC, FK, SCORES = "tests/samplers/test_smc.py::test_", "tests/samplers/test_fk.py::test_", "tests/samplers/test_scores.py::test_"
PARTICLES, GUIDED = "tests/samplers/test_particles.py::test_", "tests/samplers/test_guided.py::test_"
UNBIASED = SMC + "the_estimate_of_z_is_unbiased_over_every_draw"
DRAWS, NOISE = "tests/dlm/test_draws.py::test_", "tests/dlm/test_noise.py::test_"
LIKELIHOOD, PRETRAIN = "tests/dlm/test_likelihood.py::test_", "tests/dlm/test_pretrain.py::test_"
SANDWICH = LIKELIHOOD + "the_upper_side_of_the_sandwich_is_a_power_mean"
ACTIONS, TRAINING = "tests/policy/test_actions.py::test_", "tests/policy/test_training.py::test_"
LOSSES, IMITATION = "tests/policy/test_losses.py::test_", "tests/policy/test_imitation.py::test_"
VARIATIONAL, EXPERTS = "tests/policy/test_variational.py::test_", "tests/policy/test_experts.py::test_"
ALPHA, AGREEMENT = "tests/policy/test_alpha.py::test_", "tests/policy/test_agreement.py"
LEARNING, BOUNDS = "tests/twist/test_objectives.py::test_", "tests/twist/test_bounds.py::test_"
SWEEPS, TARGETS = "tests/twist/test_source.py::test_", "tests/twist/test_targets.py::test_"
OBJECTIVE, ADVANTAGES = "tests/rl/test_objective.py::test_", "tests/rl/test_advantages.py::test_"
REVISED, REVISES = "tests/samplers/test_revision.py::test_", "tests/policy/test_revision_policy.py::test_"
MOVES = "tests/samplers/test_moves.py::test_"
ROLLOUTS = "tests/rl/test_rollouts.py::test_"
MEASURES, SETS = "tests/evaluation/test_text_measures.py::test_", "tests/evaluation/test_likelihood.py::test_"
AUP, BOARD = "tests/evaluation/test_aup.py::test_", "tests/evaluation/test_leaderboard.py::test_"
REPORT, COST = "tests/evaluation/test_kl_report.py::test_", "tests/evaluation/test_cost.py"
REWARDS, VERIFIED = "tests/rewards/test_rewards.py::test_", "tests/rewards/test_verified.py::test_"
LATEX, ANSWERS = "tests/rewards/test_latex.py::test_", "tests/rewards/test_answers.py::test_"
PREFERENCES, SUDOKU, CHAIN = (f"tests/data/test_{name}.py::test_" for name in ("preferences", "sudoku", "chain"))

SELECTING = "tests/samplers/test_selecting.py::test_"
SELECTING_PLAIN = SELECTING + "every_row_is_that_of_the_decoder_in_plain_python"

Row = tuple[str, ...]  # what stands there, what replaces it, the tests

REMDM, EDITING = "tests/samplers/test_remdm.py::test_", "tests/samplers/test_editing.py::test_"
PLANNING = "tests/samplers/test_planning.py::test_"
WINO, CORRECTORS = "tests/samplers/test_wino.py::test_", "tests/samplers/test_correctors.py::test_"

# --------------------------------------------------------------------------------------------------------------- samplers
SAMPLERS: dict[str, list[Row]] = {
    "samplers/revision.py": [
        ("return (clean_next - (1 - sigma) * clean) /", "return (clean_next - clean) /",
         REMDM + "the_probabilities_at_every_canvas_are_those_of_the_paper"),
        ("(clean_next - clean) / rest + opened / masked", "(clean_next - clean) / rest + 0 * opened / masked",
         REMDM + "the_probabilities_at_every_canvas_are_those_of_the_paper"),
        ("scores = (-committed_at.double())", "scores = (committed_at.double())",
         REMDM + "the_weights_of_confidence_sum_to_one_over_committed_positions"),
        ("length) < sigma\n", "length) < 0.5 * sigma\n",
         REMDM + "the_law_after_every_step_is_that_of_the_enumerated_kernel"),
        ("time < self.end, closing", "time < self.begin, closing",
         REMDM + "the_probabilities_at_every_canvas_are_those_of_the_paper"),
    ],
    "samplers/planning.py": [
        ("tokens, places = torch.where(shown, observation.tokens, drawn)", "tokens, places = drawn",
         PLANNING + "every_canvas_of_p2_is_that_of_plain_python"),
        ("scores * self.eta if self.eta > 0 else 1.0", "scores if self.eta > 0 else 1.0",
         PLANNING + "every_canvas_of_p2_is_that_of_plain_python"),
        ("lowest = best(-scores, places", "lowest = best(scores, places",
         PLANNING + "every_canvas_of_p2_is_that_of_plain_python"),
        ("doubt = -self.quality", "doubt = self.quality",
         PLANNING + "prism_masks_the_tokens_of_lowest_quality_and_keeps_the_planned_number"),
        ("(goal - committed.sum(1) + number)", "(goal - committed.sum(1))",
         PLANNING + "prism_masks_the_tokens_of_lowest_quality_and_keeps_the_planned_number"),
        ("clamp(max=self.eta)\n            rows", "clamp(max=2 * self.eta)\n            rows",
         PLANNING + "the_binomial_form_masks_as_many_as_its_law_says"),
        ("(progress < self.end)", "(progress <= self.end)", PLANNING + "remasking_begins_and_ends_with_its_share_of_the_steps"),
    ],
    "samplers/editing.py": [
        ("order = at_least_one(probability > self.threshold", "order = at_least_one(probability > self.edit_threshold",
         EDITING + "every_row_is_that_of_the_rule_in_plain_python"),
        ("unfinished = goes_on & (used < self.rounds)", "unfinished = goes_on & (used <= self.rounds)",
         EDITING + "a_cycle_of_two_ends_at_the_cap"),
        ("(observation.block_step == 0, FIRST_PREVIOUS)", "(observation.block_step >= 0, FIRST_PREVIOUS)",
         WINO + "it_ends_within_as_many_steps_as_positions_and_masks_fewer_than_it_committed"),
        ("(-doubt < self.remask_threshold) & (count > 1)", "(-doubt < self.remask_threshold) & (count > 0)",
         WINO + "every_row_is_that_of_the_rule_in_plain_python"),
        (".long().clamp(5, 20)", ".long().clamp(1, 20)", WINO + "without_remasking_it_is_threshold_decoding_with_a_cap"),
    ],
    "model/shadow.py": [
        ("= ~torch.eye(size", "= torch.ones(size, size", WINO + "the_shadow_of_a_position_does_not_see_its_token"),
        ("seen[:length, length:] = False", "seen[:length, length:] = True",
         WINO + "nothing_sees_the_shadows_and_a_lone_shadow_is_the_masked_position"),
        ("torch.arange(first, first + size, device=device)", "torch.arange(length, length + size, device=device)",
         WINO + "nothing_sees_the_shadows_and_a_lone_shadow_is_the_masked_position"),
    ],
    "samplers/quality.py": [
        ("canvases = observation.tokens[row].masked_fill(read, environment.model.mask_id)", "canvases = observation.tokens[row]",
         CORRECTORS + "a_corrector_step_has_the_law_of_its_enumeration"),
    ],
    "samplers/correctors.py": [
        ("self.noise * gumbel - margins", "self.noise * gumbel + margins",
         CORRECTORS + "the_lowest_margin_is_drawn_again_without_noise"),
    ],
    "samplers/heuristics.py": [
        ("+ tied.double() + ties", "+ tied.double()", GUARANTEES + "a_wholly_tied_canvas_is_ordered_by_the_tie_stream"),
        ("scores > last + TIE", "scores > last", GUARANTEES + "what_is_hardly_above_the_last_one_taken_is_tied_with_it"),
        ("(rank < count.unsqueeze(1))", "(rank <= count.unsqueeze(1))",
         GUARANTEES + "best_takes_nothing_where_the_count_is_zero"),
        ('draws.uniform("tie"', 'draws.uniform("where"', GUARANTEES + "ties_are_drawn_apart_from_the_offset_of_dilated"),
        ("uniforms < 1 / left.double()", "uniforms < 1 / (left.double() + 1)", LAW),
        ("+ (offset * 2**bits).long()", "", GUARANTEES +
         "dilated_picks_are_as_far_apart_as_can_be_and_the_next_lie_half_way_between_them"),
        ("return top[..., 0] - top[..., 1]", "return top[..., 0]", LAW),
        ("    return -entropy\n", "    return entropy\n", LAW),
        ("+ self.noise * draws.normal", "+ draws.normal", LAW),
        ("cumsum(1) <= self.window", "cumsum(1) <= self.window + 1",
         GUARANTEES + "window_is_a_threshold_among_the_leftmost_masks_of_each_row"),
        ("(number + 1) * (1 - ordered)", "number * (1 - ordered)", LAW),
        ("ordered.cumsum(1) - ordered <= self.bound", "ordered.cumsum(1) <= self.bound", LAW),
        ("scores = -torch.arange(length", "scores = torch.arange(length", LAW),
        ("logits.gather(1, drawn) - logits.logsumexp(1, keepdim=True)", "logits.gather(1, drawn)",
         CONFIDENCE + "confidences_are_those_of_dreams_own_code"),
    ],
    "samplers/history.py": [
        ("(log_now.exp() * ratio", "(log_now.exp() * -ratio", SELECTING_PLAIN),
        ('memory["klass_read"] & writable', "writable", SELECTING_PLAIN),
        ("candidates = settled & (probability > self.threshold) & writable", "candidates = settled & writable", SELECTING_PLAIN),
        ("hidden.clone()", "hidden", SELECTING_PLAIN),
        ("(found - previous).abs() < 2", "(found - previous).abs() < 1", SELECTING_PLAIN),
        ("steps.masked_fill(~fast & (end > 0), 0)", "steps", SELECTING_PLAIN),
        ("self.value * decay[:, None, None]", "self.value", SELECTING + "credits_by_hand"),
        ("credits.value.log1p()", "credits.value", SELECTING + "tokens_of_credit_are_drawn_from_the_changed_logits"),
        ("tokens[row, position] = summary.top_tokens[:, 0]", "tokens[row, position] = environment.logits(states).argmax(1)",
         SELECTING_PLAIN),
    ],
    "samplers/lookahead.py": [
        ("tested = alive & (number >> digit & 1 == 1)", "tested = alive & (number >> digit & 1 == 0)", SELECTING_PLAIN),
        ("alive[rows] &= ~moved", "pass", SELECTING + "punt_commits_what_is_independent_and_one_of_two_copies"),
        ("2 ** (observation.left - 2)", "2 ** (observation.left - 1)", SELECTING + "no_row_spends_more_than_its_budget"),
        ("(observation.left - 2).clamp(0, self.branches)", "observation.left.clamp(0, self.branches)",
         SELECTING + "no_row_spends_more_than_its_budget"),
        ("total / masked.clamp(min=1)", "total", SELECTING_PLAIN),
        ("kept = numbers == winner[rows]", "kept = numbers == 0",
         SELECTING + "outputs_that_serve_the_next_step_are_those_of_its_canvas"),
    ],
    "samplers/loop.py": [
        ("text = self.text[observation.row_id]", "text = self.text[: len(observation.row_id)]",
         FORCED + "a_text_is_looked_up_by_the_name_of_its_row"),
        ("observation.log_prob(order > 0, text)", "observation.log_prob(observation.writable, text)",
         FORCED + "the_text_stands_at_the_end_and_every_step_has_the_probability_of_its_tokens"),
        ("draws = replace(draws, start=observation.start)", "pass", PADDED),
        ("order), log_positions.masked_fill(last, 0.0)", "order), log_positions",
         BUDGET + "the_last_evaluation_leaves_no_choice_of_positions"),
        ("chose = ~observation.last", "chose = observation.left > 0",
         BUDGET + "only_steps_with_a_choice_are_recorded_and_their_likelihood_is_replayed"),
        ("place = place[going_on]", "place = place[: len(going_on)]", INVARIANCE + "finished_rows_leave"),
        ("Draws(seed, first=prompts.first_row)", "Draws(seed)", "tests/policy/test_training.py", ROLLOUTS +
         "rows_of_a_part_of_a_batch_are_drawn_as_in_the_whole"),
    ],
    "samplers/smc.py": [
        ("log_psi[index], known[index], finished[index]", "log_psi[index], known, finished[index]",
         SMC + "what_a_proposal_said_of_a_state_goes_with_the_particle_that_is_resampled"),
        ("log_psi[index], known[index], finished[index]", "log_psi, known[index], finished[index]", UNBIASED),
        ("ancestors[:, 0] = 0", "pass", SMC + "a_given_path_is_never_replaced_by_a_likelier_one"),
        ("factor + new - log_psi, new,", "factor + new, new,", UNBIASED),
        ("            potential.select(index)\n", "",
         SMC + "what_a_potential_remembers_goes_with_the_particle_that_is_resampled"),
        ("environment.select(index, slots)", "environment.select(index)", SMC + "children_of_one_particle_draw_apart"),
        ("weighed = not ended and number % interval == 0", "weighed = not ended",
         FK + "a_causal_model_is_steered_by_beginnings_every_few_steps"),
        (".masked_fill(self.weights.log == -torch.inf, -torch.inf)", "", SMC + "the_best_particle_is_one_that_lives"),
    ],
    "samplers/particles.py": [
        ("self.log.logsumexp(1) - math.log(self.log.shape[1])", "self.log.logsumexp(1)",
         PARTICLES + "weights_estimate_z_across_resampling"),
        ("weights.log.shape[1] / 2)", "weights.log.shape[1])", PARTICLES + "who_resamples"),
        (".contiguous(), right=True)", ".contiguous())", PARTICLES + "the_dead_never_have_children"),
        ("left = expected - expected.floor()", "left = expected",
         PARTICLES + "a_particle_of_probability_w_has_k_w_children_on_average"),
        ("torch.where(chosen, self.log_normalizer, self.log_z)", "self.log_normalizer",
         PARTICLES + "weights_estimate_z_across_resampling"),
    ],
    "samplers/guided.py": [
        ("log_probs + beta * finite(", "log_probs - beta * finite(", GUIDED + "a_causal_model_samples_the_tilted_law"),
        ("logits = scores / temperature", "logits = scores * temperature", GUIDED + "a_causal_model_samples_the_tilted_law",
         GUIDED + "joint_proposals", GUIDED + "the_laws_differ_from_the_unguided_one_and_from_each_other"),
        ("return position if observation.start is None else position - observation.start[row]", "return position",
         GUIDED + "padding_on_the_left_changes_nothing"),
        ("seed=draws.seed + number * PROPOSAL", "seed=draws.seed", GUIDED + "joint_proposals"),
        ("observation.row_step[row], place, names)", "observation.row_step[row], place)",
         GUIDED + "without_weight_and_with_every_token_the_samples_are_the_unguided_ones"),
        ("ends[:, : self.first] = False", "pass", GUIDED + "an_end_within_the_prompt_ends_no_answer"),
        ("keep = keep & ~masked", "pass", GUIDED + "all_candidates_of_a_step_are_one_call_and_each_is_read_as_it_stands"),
        ("scores = self.beta * finite(found)", "scores = finite(found)", GUIDED + "joint_proposals"),
    ],
    "samplers/twisted.py": [
        ("bent.log_normalizer - self.exponent * bent.log_psi", "bent.log_normalizer - bent.log_psi",
         SMC + "a_tempered_proposal_is_as_unbiased"),
        (" - writable[active].sum(1).double().log()", "", UNBIASED, SMC + "a_tempered_proposal_is_as_unbiased"),
        ("logits.add_(log_psi, alpha=exponent)", "logits.add_(log_psi)", SMC + "a_tempered_proposal_is_as_unbiased"),
    ],
    "samplers/fk.py": [
        (".logsumexp(0) - math.log(self.completions)", ".mean(0)",
         FK + "completions_are_averaged_as_likelihoods_not_as_rewards"),
        ("torch.maximum(self._far, reward)", "reward", FK + "the_potentials_are_products_of_those_of_the_steps"),
        ("self._far[index], self._total[index]", "self._far[index], self._total",
         FK + "log_z_is_that_of_the_strategy_whatever_the_potential", FK + "the_potentials_are_products_of_those_of_the_steps"),
        ("return self.scale * self._scored(tokens)", "return self._scored(tokens)",
         FK + "log_z_is_that_of_the_strategy_whatever_the_potential"),
    ],
    "samplers/scores.py": [
        ("NoiseStep(now, now - following,", "NoiseStep(following, now - following,",
         SCORES + "steps_begin_at_the_noise_that_the_canvas_has"),
        ("math.log(math.expm1(step.drop))", "math.log(step.drop)",
         SCORES + "the_probability_of_each_change_is_that_of_the_dense_formula"),
        ("log_scores.scatter(1, own, 0.0).exp()", "log_scores.exp()",
         SCORES + "the_probability_of_each_change_is_that_of_the_dense_formula"),
    ],
}

# -------------------------------------------------------------------------------------------------------------------- dlm
DLM: dict[str, list[Row]] = {
    "samplers/siblings.py": [
        ("(past, 0), value=True)", "(past, 0), value=False)", SIBLINGS + "a_step_runs_the_new_token_and_its_siblings_only",
         SIBLINGS + "scores_and_tokens_are_those_of_the_published_loops"),
        ("length.unsqueeze(1).expand_as(siblings)), 1)", "length.unsqueeze(1).expand_as(siblings) + 1), 1)",
         SIBLINGS + "scores_and_tokens_are_those_of_the_published_loops"),
        ("same.long().cumprod(2).sum(2)", "same.long().sum(2)",
         SIBLINGS + "rewards_are_those_of_whole_texts_while_rows_grow_leave_return_and_are_copied"),
        ("part[slot, :, :past]", "part[: len(slot), :, :past]",
         SIBLINGS + "rewards_are_those_of_whole_texts_while_rows_grow_leave_return_and_are_copied"),
        ("past + place - kept.unsqueeze(1))", "past + place)",
         SIBLINGS + "texts_of_different_lengths_and_rows_that_end_leave_the_others_as_they_are",
         SIBLINGS + "rewards_are_those_of_whole_texts_while_rows_grow_leave_return_and_are_copied"),
        ("< kept.unsqueeze(1)).unsqueeze(1)", "<= kept.unsqueeze(1)).unsqueeze(1)",
         SIBLINGS + "texts_of_different_lengths_and_rows_that_end_leave_the_others_as_they_are",
         SIBLINGS + "rewards_are_those_of_whole_texts_while_rows_grow_leave_return_and_are_copied"),
    ],
    "samplers/best_of.py": [
        ("rewards.argmax(1)", "rewards.argmin(1)", BEST_OF + "ten_samples_differ_and_the_best_is_kept"),
        ("row_id.unsqueeze(1) * self.count + torch.arange(self.count", "row_id.unsqueeze(1) + torch.arange(self.count",
         BEST_OF + "no_two_rows_share_a_sample"),
        ("samples.evaluations.view(-1, self.count).sum(1)", "samples.take(best).evaluations",
         BEST_OF + "ten_samples_differ_and_the_best_is_kept"),
    ],
    "samplers/samples.py": [
        ("before_end(self.tokens, self.free, self.ends)", "before_end(self.tokens, self.prompt, self.ends)",
         ENDS + "every_reader_of_answers_stops_at_the_same_place"),
        ("return self.prompt | self.answer", "return self.answer", ENDS + "figures_and_rewards_are_of_the_answer"),
        ("has_end(self.tokens, self.free, self.ends)", "has_end(self.tokens, self.prompt | True, self.ends)",
         ENDS + "an_end_of_the_prompt_ends_no_answer"),
    ],
    "dlm/causal_lm.py": [
        ("torch.cat((start, tokens[:, : last - 1]), 1)", "tokens[:, :last]",
         CAUSAL + "a_saved_model_predicts_as_transformers_does"),
        ("logits = logits / divisor", "logits = logits * divisor", CAUSAL + "a_saved_model_predicts_as_transformers_does"),
        ("most * torch.tanh(logits / most)", "torch.tanh(logits / most)",
         CAUSAL + "a_saved_model_predicts_as_transformers_does"),
    ],
    "dlm/room.py": [
        ("start, self.kept = self.kept, self.kept + key_states.shape[2]",
         "start = self.kept - 1; self.kept += key_states.shape[2]",
         CAUSAL + "keys_and_values_are_exact"),
    ],
    "dlm/prompts.py": [
        ("device) >= self.start.unsqueeze(1))", "device) >= 0 * self.start.unsqueeze(1))",
         ROLLOUTS + "padding_is_not_written"),
    ],
    "dlm/environment.py": [
        ("torch.where(outputs.positions.unsqueeze(2), outputs.hidden, self._hidden)", "outputs.hidden.roll(1, 1)",
         "tests/samplers/test_selecting.py::test_outputs_that_serve_the_next_step_are_those_of_its_canvas"),
        ("self._known |= outputs.positions", "pass", "tests/samplers/test_selecting.py::test_the_chosen_canvas_of_lopa_is_not_"
         "evaluated_again"),
        ("(1 + weight) * prompted", "weight * prompted",
         PROMPTS + "guidance_is_the_formula_and_costs_two_evaluations"),
        ("own = position if self.start is None else position - self.start[row]", "own = position", PADDED),
        ("logits[:, list(self.options.never_tokens)] = -torch.inf", "pass",
         PROMPTS + "tokens_that_are_never_written_and_tokens_that_are_written_last"),
        ("        self._known &= ~unknown\n", "", INVARIANCE + "reuse_gives_the_tokens_of_a_loop_that_reuses_nothing"),
        ("        self._readout_known &= ~unknown\n", "",
         INVARIANCE + "reuse_gives_the_tokens_of_a_loop_that_reuses_nothing"),
        ("options.patience * self.to_write", "options.patience", GUARANTEES + "a_limit_ends_a_row_with_masks_left"),
        ("left = (self.budget - spent)", "left = (self.budget - self.evaluations)",
         BUDGET + "an_evaluation_that_wrote_nothing_is_at_hand_still"),
        ("time = share if options.budget is None else 1.0 / left", "time = share",
         BUDGET + "time_is_one_over_the_evaluations_left"),
        ("& ~self.given & (self.open.cumsum(1) == 0)", "& ~self.given",
         PROMPTS + "an_end_ends_its_row_once_nothing_before_it_is_open"),
        ("top_log_probs[:, 0].masked_fill(last, LEAST)", "top_log_probs[:, 0]",
         PROMPTS + "tokens_that_are_never_written_and_tokens_that_are_written_last"),
        ("self.block_step.masked_fill(fresh, 0)", "self.block_step",
         GUARANTEES + "blocks_are_filled_in_order_in_no_more_than_their_steps", LAW + "_in_blocks_around_a_prompt"),
        ("self.cache.fresh.masked_fill(fresh, 0)", "self.cache.fresh",
         PROMPTS + "the_published_decodings_with_and_without_caches"),
        ("for name in BY_ROW:", 'for name in (name for name in BY_ROW if name != "budget"):',
         BUDGET + "rows_have_budgets_of_their_own_whatever_their_batch"),
        (".squeeze(1) - logits.logsumexp(1)\n            log_q", ".squeeze(1)\n            log_q",
         GUARANTEES + "the_decision_carries_the_density_of_its_tokens"),
        ("-(log_prob.exp() * log_prob).sum(1)", "-log_prob.exp().square().sum(1)", LAW),
    ],
    "dlm/observation.py": [
        ("(self.block_step < extra)", "(self.block_step <= extra)",
         GUARANTEES + "fixed_counts_spread_what_is_left_over_and_spend_the_steps_asked_for"),
        ("-(-self.masked.sum(1) // self.left.clamp(min=1))", "self.masked.sum(1) // self.left.clamp(min=1)",
         BUDGET + "rules_of_a_fixed_count_spread_their_masks_over_the_budget"),
    ],
    "dlm/draws.py": [
        ("row_id + self.first, row_step, position)", "row_id, row_step, position)", ROLLOUTS +
         "rows_of_a_part_of_a_batch_are_drawn_as_in_the_whole"),
        ("position = position - self.start.unsqueeze(1)", "pass", PADDED),
        ("(z >> 27).bitwise_and_((1 << 37) - 1)", "(z >> 27)", DRAWS + "uniforms_equal_the_reference"),
        ("tokens = (columns + 1) * _GOLDEN", "tokens = (0 * columns + 1) * _GOLDEN", DRAWS + "categorical_samples_the_softmax"),
    ],
    "dlm/token_rule.py": [
        ("ordered.double().cumsum(1) - ordered ", "ordered.double().cumsum(1) ", TOKENS),
        ("logits / self.temperature if", "logits * self.temperature if", TOKENS),
        ("logits < worst", "logits <= worst", TOKENS),
    ],
    "dlm/cache.py": [
        ("self.age >= self.refresh", "self.age > self.refresh",
         PROMPTS + "a_cache_that_is_refreshed_at_every_evaluation_changes_nothing"),
        ("| (lowest < start)", "",
         PROMPTS + "a_cached_row_runs_whole_where_something_before_its_block_is_read_for_the_first_time"),
        ("torch.minimum(self.fresh[rows], lowest), highest", "lowest, highest",
         PROMPTS + "a_causal_models_keys_and_values_are_exact"),
    ],
    "dlm/noise.py": [
        ("sigma * math.log(self.sigma_max / self.sigma_min)", "sigma", NOISE + "the_rate_is_the_derivative"),
        (" / -torch.expm1(-sigma_t)", "", NOISE + "reveal_rates_multiply_up_to_the_whole_interval"),
    ],
    "dlm/likelihood.py": [
        ("lowest(keys, among, count), total / count.clamp(min=1)", "lowest(keys, among, count), total / total",
         LIKELIHOOD + "the_elbo_is_unbiased_for_the_any_order_bound"),
        ("torch.where(mirrored[:, None], 1 - drawn.flip(1), drawn)", "drawn",
         LIKELIHOOD + "the_second_half_of_the_views_mirrors_the_first"),
        (".log() / self.beta, 0.0)", ".log(), 0.0)", SANDWICH),
        ("(self.beta * terms + ", "(terms + ", SANDWICH),
        ("self.mix * upper + (1 - self.mix) * lower", "self.mix * lower + (1 - self.mix) * upper", SANDWICH,
         LIKELIHOOD + "the_sandwich_encloses"),
        ("torch.where(push_down.unsqueeze(1)", "torch.where(~push_down.unsqueeze(1)", SANDWICH,
         LIKELIHOOD + "the_sandwich_encloses"),
        ("1 / (1 - time) / self.samples", "1 / time / self.samples",
         LIKELIHOOD + "coupled_is_a_third_mean_field_and_two_thirds_of_the_cut_bound"),
        ("Views(row, free[row] | hidden, free[row], weight)", "Views(row, free[row] | hidden, free[row] | hidden, weight)",
         LIKELIHOOD + "a_masked_prompt_is_not_scored"),
        ("(when >= step.unsqueeze(1))", "(when > step.unsqueeze(1))",
         LIKELIHOOD + "a_replayed_trajectory_has_the_log_probability_it_had"),
        ("whole[views.read], estimator.temperature)", "whole[views.read])",
         LIKELIHOOD + "a_replayed_trajectory_has_the_log_probability_it_had"),
        ("weight = rate.float() / self.samples", "weight = rate.float()",
         LIKELIHOOD + "score_entropy_is_the_bound_of_a_score_model_and_charges_a_wrong_mass"),
    ],
    "dlm/pretrain.py": [
        ("(rate / torch.expm1(sigma)).float(), share", "rate.float(), share",
         PRETRAIN + "t_DCE_masks_at_the_rate_that_its_weight_belongs_to",
         PRETRAIN + "every_denoising_loss_is_the_any_order_bound"),
        ("uniforms.masked_fill(given, 2.0)", "uniforms", PRETRAIN + "what_is_given_is_never_masked"),
        ("model.sigma_of(share * free)", "model.sigma_of(share)",
         PRETRAIN + "the_model_is_told_the_noise_of_the_whole_canvas_where_some_of_it_is_given"),
        ("free / count.clamp(min=1), count /", "free / free, count /", PRETRAIN + "k_DCE_without_monte_carlo",
         PRETRAIN + "every_denoising_loss_is_the_any_order_bound"),
    ],
    "dlm/masked_lm.py": [
        ("model.head(states) / temperature", "model.head(states)",
         LIKELIHOOD + "a_replayed_trajectory_has_the_log_probability_it_had"),
    ],
}

# ----------------------------------------------------------------------------------------------------------------- policy
POLICY: dict[str, list[Row]] = {
    "policy/agreement.py": [
        ("return torch.where(revisable, self._reopening(masked, top_tokens, probabilities, time, reopened), logits)",
         "return torch.where(masked, self._reopening(masked, top_tokens, probabilities, time, reopened), logits)",
         REVISES + "a_new_reviser_unmasks_as_the_policy_that_it_continues"),
        ("agreement * others,\n", "agreement,\n", AGREEMENT),
        ("agreement * ~others", "agreement * others", AGREEMENT),
        ("torch.log1p(-agreement", "torch.log1p(agreement", AGREEMENT),
        ("self.confidence_scale * self.log_odds", "self.log_odds", AGREEMENT),
        ("where(masked[..., None], readout.top_tokens", "where(~masked[..., None], readout.top_tokens", AGREEMENT),
    ],
    "policy/actions.py": [
        ("stops_first = torch.sigmoid(self.stop_logit - log_total)", "stops_first = torch.sigmoid(log_total - self.stop_logit)",
         REVISES + "frequencies_are_the_probabilities_whatever_must_be_selected"),
        ("end = first - left.log()", "end = -left.log()",
         REVISES + "frequencies_are_the_probabilities_whatever_must_be_selected"),
        ("best = _best(logits, writable if forced is None else forced)", "best = _best(logits, writable)",
         REVISES + "frequencies_are_the_probabilities_whatever_must_be_selected"),
        ("torch.sigmoid(logits.double() / self.temperature) >= self.threshold",
         "torch.sigmoid(logits.double()) >= self.threshold",
         ACTIONS + "trust_writes_all_above_its_threshold_and_always_the_best"),
        ("first = remaining[:, :1]  # no STOP", "first = with_stop[:, :1]  # no STOP",
         ACTIONS + "probabilities_of_all_outcomes_sum_to_one"),
        ("torch.sigmoid(logits.double() / distribution.temperature)", "torch.sigmoid(logits.double())",
         ACTIONS + "frequencies_are_the_probabilities"),
        ("scaled = logits.float() / distribution.temperature", "scaled = logits.float()",
         ACTIONS + "frequencies_are_the_probabilities", ACTIONS + "bernoulli_equals_the_published_likelihood"),
        ("(ranks > count[:, None])", "(ranks >= count[:, None])", ACTIONS + "frequencies_are_the_probabilities"),
        ("before = cost.cumsum(dim=1) - cost", "before = cost.cumsum(dim=1)",
         ACTIONS + "vectorised_repulsion_and_its_gradients_equal_the_formula"),
        (".masked_fill(only_best & best, 0.0)", "", ACTIONS + "forced_pick_has_the_mass_of_the_empty_set"),
        ("utilities - torch.log(-torch.log(uniforms))", "utilities + torch.log(-torch.log(uniforms))",
         ACTIONS + "frequencies_are_the_probabilities"),
        ("(rank <= count[:, None])", "(rank < count[:, None])", ACTIONS + "frequencies_of_repelled_picks_are_the_probabilities_"
         "whatever_the_counts_beside_them"),
    ],
    "training/learner.py": [
        ("        self.average.update(self.network.parameters())\n", "",
         TRAINING + "the_moving_average_follows_every_update"),
    ],
    "policy/batches.py": [
        ("else seed + 1)  # not as the budgets are", "else seed)",
         ALPHA + "weights_of_speed_are_drawn_apart_from_budgets"),
    ],
    "policy/train.py": [
        ("step_seed(self.config.seed, step), self.processes.device", "step_seed(self.config.seed, 0), self.processes.device",
         TRAINING + "every_iteration_has_draws_of_its_own"),
        ("self.processes, step_seed(self.config.seed, step)", "self.processes, step_seed(self.config.seed, 0)",
         TRAINING + "every_iteration_has_draws_of_its_own"),
        ("budget.repeat_interleave(self.group)", "budget.repeat(self.group)", TRAINING + "rollouts_of_a_prompt_share_its_budget"),
        ("            self.objective = self.new_objective()  # a KL is to the policy that the warm start leaves\n", "",
         TRAINING + "a_kl_is_to_the_policy_that_a_warm_start_leaves"),
        ("(loss / len(parts)).backward()", "loss.backward()", TRAINING + "accumulated_parts_average_over_the_batch"),
        ("PolicyUnmasker(self.network, config.eval.action, config.eval.temperature)",
         "PolicyUnmasker(self.network, config.eval.action)",
         "tests/test_verifiable_rewards.py::test_the_temperature_is_the_policys_at_evaluation"),
    ],
    "policy/grpo.py": [
        ("steps if self.algorithm.kl else steps.take(advantage.nonzero().squeeze(1))",
         "steps.take(advantage.nonzero().squeeze(1))", TRAINING + "chunks_and_dropped_rows_leave_the_gradient"),
        ("self.algorithm.kl * (own * kl_to_reference", "(own * kl_to_reference",
         TRAINING + "kl_is_to_the_policy_that_training_starts_from"),
        ("kl_to_reference(log_prob, reference))", "kl_to_reference(reference, log_prob))",
         TRAINING + "kl_is_to_the_policy_that_training_starts_from"),
        ("per_row_weights(trajectory.row, rows), expert", "per_row_weights(trajectory.row, 2 * rows), expert",
         TRAINING + "grpo_gradient_from_the_formula"),
    ],
    "policy/ppo.py": [
        ("1.0, self.algorithm.gae_decay)", "1.0, 1.0)", TRAINING + "ppo_advantages_and_targets_are_those_of_a_plain_loop"),
        ("last = trajectory.step == ends[trajectory.row]", "last = trajectory.step == 0",
         TRAINING + "ppo_advantages_and_targets_are_those_of_a_plain_loop"),
        ("self.algorithm.value_weight * value_loss", "value_loss", TRAINING + "ppo_gradient_from_the_formula"),
    ],
    "policy/rollout.py": [
        ("must_change(trajectory.writable, trajectory.opened)", "trajectory.writable",
         REVISES + "recorded_steps_have_the_log_probability_they_had"),
        ('patience=PATIENCE, alpha=prompts.rows.get("alpha")', "patience=PATIENCE",
         ALPHA + "a_prompt_shares_its_alpha_with_its_group_and_policy_and_reward_see_the_same"),
    ],
    "policy/variational.py": [
        ("order.amax(1, keepdim=True) + 1 - order", "order", VARIATIONAL + "reverse"),
        ("(back < total % steps)", "(k < total % steps)",
         VARIATIONAL + "that_likelihood_is_how_often_the_sampler_writes_the_row",
         VARIATIONAL + "the_time_in_training_is_that_of_sampling"),
        ("((steps - k) / total.clamp(min=1))", "(k / total.clamp(min=1))",
         VARIATIONAL + "the_time_in_training_is_that_of_sampling"),
    ],
    "policy/imitation.py": [
        ("-wrong * F.logsigmoid(-scores)", "-F.logsigmoid(-scores)",
         IMITATION + "the_loss_is_a_cross_entropy_over_every_mask_in_which_wrong_ones_count_more"),
        ("loss.masked_fill(~part.writable, 0.0)", "loss",
         IMITATION + "the_loss_is_a_cross_entropy_over_every_mask_in_which_wrong_ones_count_more"),
        (".total.to(trajectory.row.device) > 0", ".total.to(trajectory.row.device) >= 0",
         IMITATION + "only_rewarded_rollouts_are_learnt_from_and_without_any_nothing_is"),
    ],
    "policy/unmasker.py": [
        ("(temperature=self.temperature, **settings)", "(temperature=1.0, **settings)",
         "tests/test_verifiable_rewards.py::test_the_temperature_is_the_policys_at_evaluation",
         TRAINING + "the_temperature_divides_the_scores"),
        ("REPULSION_UNIT * network.repulsion", "network.repulsion",
         TRAINING + "replay_of_picks_that_repel_has_the_log_probability_it_had",
         TRAINING + "repulsion_is_in_units_of_twenty_nats"),
    ],
}

# ------------------------------------------------------------------------------------------------------------------ twist
TWIST: dict[str, list[Row]] = {
    "twist/objectives.py": [
        ("log_phi.unsqueeze(1)), 1).detach()", "log_phi.unsqueeze(1)), 1)", LEARNING + "the_targets_of_soft_q_stand_still"),
        ("(pushed_down - pulled_up).mean()", "(pulled_up - pushed_down).mean()", LEARNING +
         "the_gradient_of_ctl_is_that_of_the_kls_of_all_prefixes"),
        ("(log_p - log_q).cumsum(1) + log_psi", "(log_p - log_q).cumsum(1)", LEARNING +
         "the_gradient_of_ctl_is_that_of_the_kls_of_all_prefixes"),
        ("(log_psi - log_normalizer)).sum(0)", "log_psi).sum(0)", LEARNING + "dpg_is_the_published_estimator"),
        ("(1 - label) * no", "no", LEARNING + "what_each_rule_identifies"),
        (" / groups).flatten(0, 1)", ").flatten(0, 1)", LEARNING + "conditions_have_equal_shares"),
        ("F.logsigmoid(-negative)", "F.logsigmoid(negative)", LEARNING + "what_each_rule_identifies"),
    ],
    "twist/algorithms.py": [
        ("psi - seen.log_normalizer[:, 1:]", "psi - seen.log_normalizer[:, :-1]",
         SWEEPS + "a_state_head_learns_what_the_twist_of_the_tokens_expects_of_a_state"),
    ],
    "twist/bounds.py": [
        ("log_weight.logsumexp(1) - math.log(log_weight.shape[1])", "log_weight.logsumexp(1)",
         BOUNDS + "importance_bounds_close_in"),
        ("exact.unsqueeze(1), log_weight[:, 1:]", "exact.unsqueeze(1), log_weight", BOUNDS + "the_exact_sample_takes_one_place"),
        ("uniform.log() < log_phi", "uniform.log() > log_phi", BOUNDS + "what_rejection_keeps_is_of_the_target"),
        ("math.hypot(self.gap / 2,", "math.hypot(self.gap,",
         BOUNDS + "what_log_z_is_known_to_holds_the_gap_and_the_spread_of_its_sweeps"),
        ("std()) / len(values) ** 0.5", "std()) / len(values)", BOUNDS + "the_interval_covers_as_often_as_it_says"),
        ("f.shifted(log_z, -1), g.shifted(-log_z)", "g.shifted(-log_z), f.shifted(log_z, -1)",
         BOUNDS + "f_and_g_meet_the_exact_kls"),
    ],
    "twist/targets.py": [
        ("return self.beta * self.log_probs(tokens)", "return self.log_probs(tokens)",
         TARGETS + "potentials_stay_finite_where_probabilities_vanish"),
        ("(self.score(tokens) - self.highest)", "self.score(tokens)", TARGETS + "a_reward_stays_below_its_highest"),
        ("if self.above else score < self.threshold", "if self.above else score > self.threshold",
         TARGETS + "class_threshold_and_their_settings"),
        ("each[:, self.first : tokens.shape[1]]", "each[:, : tokens.shape[1]]",
         TARGETS + "continuations_are_likely_as_the_model_says"),
    ],
}

# --------------------------------------------------------------------------------------------------------- rl and losses
RL: dict[str, list[Row]] = {
    "rl/objective.py": [
        ("each = weight.unsqueeze(1) * decided / positions", "each = weight.unsqueeze(1) * decided",
         OBJECTIVE + "the_expected_grpo_gradient_is_that_of_the_expected_reward",
         OBJECTIVE + "the_first_ratio_is_one_and_the_kl_of_equals_is_zero"),
        ("loss + kl_beta * kl", "loss + kl", OBJECTIVE + "the_kl_is_weighed_and_positions_are_averaged"),
        ("(again * derivative[part]).sum()", "again.sum()", OBJECTIVE + "chunks_give_the_gradient_of_the_whole"),
        ("kept = each.flatten() > 0", "kept = each.flatten() >= 0", OBJECTIVE + "rows_of_weight_zero_are_left_out"),
    ],
    "rl/preferences.py": [
        ("return chosen - rejected", "return rejected - chosen",
         ROLLOUTS + "a_margin_is_that_of_the_chosen_over_the_rejected"),
        ("F.logsigmoid(beta * margin)", "F.logsigmoid(margin)", ROLLOUTS + "the_loss_of_pairs_is_that_of_the_definition"),
        ("views.row + len(pairs)", "views.row", ROLLOUTS + "the_loss_of_pairs_is_that_of_the_definition"),
        ("step_seed(self.config.seed, step), part.start", "step_seed(self.config.seed, 0), part.start",
         ROLLOUTS + "the_loss_of_pairs_is_that_of_the_definition"),
    ],
    "rl/rollouts.py": [
        ("return self.advantage < 0", "return self.advantage > 0", ROLLOUTS + "rows_below_their_group_are_pushed_down"),
        ("views.take(self.valid[views.row].nonzero().squeeze(1))", "views",
         ROLLOUTS + "rows_without_a_reward_have_no_canvases"),
        ("self.unmasked_at >= 0 if estimator.replays else with_end(self.tokens, self.free, self.ends)", "self.free",
         ROLLOUTS + "a_likelihood_is_of_the_answer_and_its_end_and_not_of_what_fills_the_canvas"),
        ("views.masked | (self.free & ~decided)[views.row]", "views.masked",
         ROLLOUTS + "a_likelihood_is_of_the_answer_and_its_end_and_not_of_what_fills_the_canvas"),
    ],
    "rl/train.py": [
        ("new, old, reference, decided", "new, old, reference, batch.free",
         ROLLOUTS + "updates_divide_by_the_positions_that_were_decided"),
        ("rl.baseline_decay * before + (1 - rl.baseline_decay) * mean",
         "rl.baseline_decay * mean + (1 - rl.baseline_decay) * before",
         ADVANTAGES + "the_running_mean_keeps_nine_tenths_of_what_it_was"),
        ("(square.sqrt() + 1e-4)", "(square + 1e-4)", ADVANTAGES + "advantages_stay_small_where_all_rewards_of_a_batch_agree"),
    ],
    "losses.py": [
        ("reward.nanmean(1, keepdim=True)", "reward.nanmean()", LOSSES + "advantages_compare_within_the_group"),
        ("torch.minimum(ratio * advantage", "torch.maximum(ratio * advantage", LOSSES + "clip_regions"),
        ("discount * decay * running", "discount * running", LOSSES + "gae_equals_a_plain_loop_over_each_episode"),
        ("torch.exp(log_ratio) - 1 - log_ratio", "-log_ratio",
         LOSSES + "kl_estimate_is_positive_unbiased_and_pulls_to_the_reference"),
        ("1.0 / (rows * steps[row])", "steps[row] / (rows * steps[row])",
         LOSSES + "rollouts_count_the_same_however_many_steps_they_took"),
        ("0.5 * (weight * (value - target) ** 2)", "(weight * (value - target) ** 2)",
         LOSSES + "value_loss_is_half_the_weighted_square"),
        ("returns = terms.detach()", "returns = terms", VARIATIONAL + "expected_gradient_is_that_of_the_exact_bound"),
        ("returns.mean(1, keepdim=True)).masked_fill(equal", "returns.mean()).masked_fill(equal",
         LOSSES + "step_advantages_equal_a_plain_loop_over_rollouts_of_different_lengths"),
        (".masked_fill(deviation <= ROUNDING * size, 0.0)", "", LOSSES + "rounding_is_not_blown_up_to_an_advantage"),
        ("log_prob + math.log(group / members)", "log_prob",
         EXPERTS + "the_likelihood_of_an_experts_picks_is_that_of_the_mixture_they_are_drawn_from"),
        ("(torch.expm1(excess) - excess)", "torch.expm1(excess)", PRETRAIN + "DSE_is_the_dense_formula_with_its_gradient"),
    ],
}

# ------------------------------------------------------------------------------------------------------------- evaluation
EVALUATION: dict[str, list[Row]] = {
    "evaluation/cost.py": [
        ("1, length), model.mask_id", "1, length // 2), model.mask_id", COST),
        ("canvas.shape[1] - start[rows]", "canvas.shape[1] + 0 * start[rows]", COST),
    ],
    "evaluation/text.py": [
        (" / (lengths - 1)", " / lengths", MEASURES + "perplexity_of_texts_equals_the_plain_loop_in_any_batch"),
        ("tokens.masked_fill(~real, -100)[:, 1:]", "tokens[:, 1:]",
         MEASURES + "perplexity_of_texts_equals_the_plain_loop_in_any_batch"),
        ("[*bos, *ids][:limit]", "[*ids][:limit]", MEASURES + "perplexity_of_texts_equals_the_plain_loop_in_any_batch"),
    ],
    "evaluation/intervals.py": [
        ("rows[:, 0].sum() / rows[:, 1].sum(), resamples", "(rows[:, 0] / rows[:, 1]).sum(), resamples",
         "tests/benchmarks/test_sudoku.py"),
        ("Z95**2 / (4 * trials**2)", "Z95**2 / (4 * trials)", MEASURES + "wilson_solves_the_score_equation"),
        ("times @ units", "(times > 0) @ units", AUP + "a_resample_computes_everything_anew"),
        ("units = np.stack([np.bincount(place, column) for column in units.T], 1)", "pass", AUP + "groups_are_resampled_whole"),
        ("[0.025, 0.975]", "[0.05, 0.95]",
         MEASURES + "bootstrap_matches_the_normal_interval_and_pairing_removes_shared_noise"),
    ],
    "evaluation/aup.py": [
        ("-alpha * (1 - accuracy / best)", "-alpha * (best - accuracy)", AUP + "the_worked_examples"),
        ("1.0 if accuracy >= best else math", "math", AUP + "edge_rules"),
        ("ordered = sorted(points, key=lambda point: point[0])", "ordered = sorted(points)", AUP + "the_worked_examples"),
        ("    if not is_near(fastest, slowest):", "    if False:", AUP + "a_last_point_that_is_too_low_and_shares_are_refused"),
        ("ordered if is_near((rho, y), ordered[0])]", "ordered]", AUP + "the_worked_examples"),
        ("ordered[0][0] * ordered[0][1] + sum", "ordered[0][0] * weighted[0][1] + sum", AUP + "the_worked_examples"),
        ("- MARGIN - ROUNDING", "- MARGIN", AUP + "edge_rules"),
        ("    while ordered and not", "    if ordered and not", AUP + "a_last_point_that_is_too_low_and_shares_are_refused"),
        ("0 < max(accuracies) <= 1", "max(accuracies) < 0", AUP + "a_last_point_that_is_too_low_and_shares_are_refused"),
        ("percentiles(whole[0] / whole[1], sums", "percentiles((both[:, 0] / both[:, 1]).mean(), sums",
         AUP + "tpf_is_a_ratio_of_sums"),
        ("bests = accuracy.max(1) if", "bests = np.full(len(sums), accuracy[0].max()) if",
         AUP + "a_resample_computes_everything_anew"),
        ("slice(first, first + len(own))", "slice(0, len(own))", AUP + "a_resample_computes_everything_anew"),
        ("len(own) - len(curves[0])", "0", AUP + "settings_share_their_problems_in_a_resample"),
    ],
    "evaluation/leaderboard.py": [
        ("first.get(task, {}) | second.get(task, {})", "second.get(task, {}) | first.get(task, {})",
         BOARD + "a_later_method_replaces_an_earlier_one"),
        ("100 * accuracy if is_share", "accuracy if is_share", BOARD + "summary_statistics_are_a_source"),
        (" and not isinstance(value, bool)", "", BOARD + "what_is_wrong_with_a_leaderboard_is_one_sentence"),
        ("if len(values) == len(found) else", "if values else", BOARD + "methods_without_a_task_have_no_mean"),
        ("rounded(usable([one.point for one in own]))", "rounded([one.point for one in own])",
         BOARD + "points_for_which_aup_is_not_defined_are_left_out"),
        ("if line.strip() and not line", "if not line", BOARD + "published_files_read_back"),
    ],
    "evaluation/likelihood.py": [
        ("1 / (k * math.comb(count, k))", "1 / math.comb(count, k)", SETS + "the_sum_over_all_sets_is_the_mean_over_all_orders"),
        ("/ (2 * len(pairs))", "/ len(pairs)", SETS + "monte_carlo_is_unbiased_and_so_is_its_error"),
        ("(1 + guidance) * logits", "logits", SETS + "guidance_compares_with_the_context_masked"),
        ("scored - (longest > 1)", "scored", SETS + "windows_score_every_token_once"),
    ],
    "evaluation/summary.py": [
        ("values.std(ddof=1)", "values.std()", "tests/test_run_evaluate.py::test_statistics_over_seeds"),
        ('seeds_averaged(records, "tokens"), seeds_averaged(records, "nfe")))',
         'seeds_averaged(records, "nfe"), seeds_averaged(records, "tokens")))',
         BOARD + "tpf_of_an_evaluation_is_that_of_its_samples"),
    ],
    "evaluation/metrics.py": [
        ("batch.answer.sum(1)", "batch.generated", AUP + "tokens_of_samples_end_where_the_response_ends"),
    ],
    "evaluation/report.py": [
        ("-1 if faster_is_right else 1", "1",
         "tests/evaluation/test_report.py::test_the_frontier_of_speeds_is_that_of_their_negatives"),
    ],
    "evaluation/kl_report.py": [
        ("value_of(log_phi_of(run.last)) / run.beta", "value_of(log_phi_of(run.last))",
         REPORT + "the_score_is_of_log_phi_without_beta"),
        ("own[0].last, side) + log_z_error", "own[0].last, side)",
         REPORT + "log_z_of_pairs_is_the_closest_and_widens_every_interval"),
        ('log_z - value_of(record["f"])', 'value_of(record["f"]) - log_z', REPORT + "one_log_z_and_means_over_seeds"),
        ("Z95 * stdev(found) / len(found) ** 0.5", "Z95 * stdev(found)", REPORT + "one_log_z_and_means_over_seeds",
         REPORT + "three_formats_and_two_plots"),
    ],
}

# ------------------------------------------------------------------------------------------------------- rewards and data
REWARDS_AND_DATA: dict[str, list[Row]] = {
    "rewards/rules.py": [
        ("| ~samples.prompt).all(1)", "| samples.prompt).all(1)", REWARDS +
         "a_puzzle_with_several_solutions_is_solved_by_any_that_keeps_its_clues"),
        ("torch.minimum(evaluations, length) + 1", "torch.minimum(evaluations, length)", REWARDS + "speed_factor_formula"),
        ("right - alpha * samples.evaluations / length", "right - samples.evaluations / length",
         VERIFIED + "every_function_is_its_formula"),
        ("values[function] * own.to(device)", "values[function]",
         VERIFIED + "a_function_of_a_data_set_leaves_the_others_at_zero"),
    ],
    "rewards/latex.py": [
        ('verdict(piece.text) if piece.closed else FormulaVerdict(False, 0.0, "not closed")', "verdict(piece.text)",
         LATEX + "a_formula_that_is_not_closed_is_broken"),
        ('terms["valid"] * bonus', "bonus", LATEX + "the_total_is_what_the_terms_say"),
        ("max(0.0, again - FREE_REPETITION)", "again", LATEX + "repetition_is_a_penalty"),
    ],
    "rewards/answers.py": [
        ("if (inside := boxed(text)) is not None:\n        return inside, True\n    if (inside := tagged(text)) is not None:\n"
         "        return inside, False",
         "if (inside := tagged(text)) is not None:\n        return inside, False\n    if (inside := boxed(text)) is not None:\n"
         "        return inside, True", ANSWERS + "a_box_comes_before_a_tag_and_a_tag_before_a_marker"),
        ("for found in reversed(list(", "for found in (list(", ANSWERS + "the_answer_of_a_text"),
        ('used == given if puzzle.get("all", True) else used <= given', "used <= given",
         ANSWERS + "countdown_uses_each_number_as_it_is_told"),
    ],
    "rewards/values.py": [
        ("Fraction(1, 1_000_000) * min(1, abs(wanted))", "Fraction(1, 2) * min(1, abs(wanted))",
         "tests/rewards/test_values.py::test_the_tolerance"),
    ],
    "rewards/measures.py": [
        ("counted.unfold(1, n, 1).all(2)", "counted.unfold(1, n, 1).any(2)", MEASURES + "distinct_n_equals_a_set",
         "tests/dlm/test_ends.py::test_figures_and_rewards_are_of_the_answer"),
    ],
    "data/preferences.py": [
        ("preference.rejected, preference.rejected_ends)", "preference.rejected, preference.chosen_ends)",
         PREFERENCES + "full_rows_end"),
        ("default_rng((seed, number))", "default_rng((0, number))", PREFERENCES + "what_is_drawn_for_a_pair_is_its_own"),
        ("default_rng(seed).choice(len(rows)", "default_rng(0).choice(len(rows)",
         PREFERENCES + "a_subset_is_drawn_by_the_seed"),
        ("np.arange(same + 1, shorter + 1)", "np.arange(same + 1, shorter)",
         PREFERENCES + "prefixes_have_one_length_no_end_that_was_not_there_and_no_decoding"),
        ('answers[row["choice"]], answers[1 - row["choice"]]', 'answers[1 - row["choice"]], answers[row["choice"]]',
         PREFERENCES + "tldr_has_one_template_and_rows_without_a_post_are_counted"),
    ],
    "data/sudoku.py": [
        ("clues.gather(1, source)", "clues", SUDOKU + "augment_moves_clues_with_the_digits"),
        ("generator=generator) < 0.5", "generator=generator) < 0.0", SUDOKU + "augment_transposes_only_square_boxes",
         SUDOKU + "augment_reaches_the_whole_class"),
    ],
    "data/chain.py": [
        ("(first + 1 < ended) & ", "",
         CHAIN + "the_checker_reads_what_stands_behind_the_first_equals_sign_before_the_end"),
        ("self.seed * 1_000_003 + self.drawn - 1", "self.seed * 1_000_003", CHAIN + "rows_go_on_where_they_were"),
        ("named & valued & before_end[:, 1:, None]", "named & valued",
         CHAIN + "the_share_that_is_right_counts_steps_before_the_end_and_the_result"),
    ],
}

# ------------------------------------------------------------------------------------------------------ evaluation from Python
EVALUATING, TEXTS = "tests/unmask/test_evaluating.py::test_", "tests/test_evaluate_text.py::test_"
PROMPTS, PROGRESS = "tests/unmask/test_prompts_file.py::test_", "tests/training/test_progress.py::test_"
API, CALLS = "tests/test_api.py::test_", "tests/unmask/test_calls.py::test_"
FROM_PYTHON: dict[str, list[Row]] = {
    "unmask/api.py": [
        ('values.to("cpu", copy=True)', "values.cpu()", API + "a_stream_yields_every_step_and_ends_with_its_reader"),
        ("{**settings[name], **value}", "{**value}", API + "a_keyword_changes_one_field_of_nested_settings"),
    ],
    "unmask/calls.py": [
        ("if str(self.settings[key]) != str(chosen[key]):", "if False:",
         CALLS + "what_contradicts_an_argument_is_one_sentence"),
        ("if other in self.settings:", "if False:", CALLS + "what_contradicts_an_argument_is_one_sentence"),
        ("PLAIN.fullmatch(str(value)) is not None", "False", CALLS + "published_values_are_words_as_on_the_command_line"),
    ],
    "unmask/decoders.py": [
        ("if isinstance(model.tokenizer, BoardTokenizer):", "if False:", API + "a_reward_does_not_read_boards"),
    ],
    "training/compatibility.py": [
        ("new not in by_key or _key(word) == new", "_key(word) == new", "tests/training/test_compatibility.py"),
    ],
    "unmask/runs/help_text.py": [
        ('texts["groups"].get(key)', "None", "tests/test_fields.py::test_help_says_what_every_key_means"),
    ],
    "unmask/evaluating.py": [
        ("own = merged(trained, given)", "own = trained | dict(given)",
         EVALUATING + "a_trained_policy_is_evaluated_with_the_action_and_budgets_of_its_training"),
        ("return list(dict.fromkeys(found))", "return found", EVALUATING + "rules_and_policies_side_by_side"),
        ("steps=None if unread else steps", "steps=None", EVALUATING + "settings_decode_as_they_do_in_sample"),
        ("steps=None if unread else steps, budget=settings.budget,", "steps=None if unread else steps,",
         EVALUATING + "a_trained_policy_is_evaluated_with_the_action_and_budgets_of_its"
         "_training"),
        ('trained["policy"] = {"action": SAMPLING_MODES[mode], ', 'trained["policy"] = {',
         EVALUATING + "a_trained_policy_is_evaluated_with_the_action_and_budgets_of_its_training"),
        ("own_rule(strategy), settings", "strategy, settings", EVALUATING + "answers_of_a_callers_objects_are_not_taken_for_those"
         "_of_another"),
        ("names.count(name) > 1", "names.count(name) > 2", EVALUATING + "strategies_of_one_kind_need_names"),
        ("if all(reasons):", "if False:", EVALUATING + "what_is_wrong_is_one_sentence"),
        ("scores[~scores.isnan()].mean()", "scores.nan_to_num().mean()", EVALUATING + "measures_of_texts_from_anywhere"),
        ("weights=digest_of(weight_digests(rule.network.named_parameters()))", "weights=None",
         EVALUATING + "a_policy_uses_the_settings_of_its_action"),
        ("> 0.5, dataset=name", ">= 0, dataset=name", EVALUATING + "a_users_questions"),
    ],
    "evaluation/compare.py": [
        ("prompt {settings['prompt']!r}", "", TEXTS + "texts_with_other_prompts_are_not_compared"),
        ("tokens_per_forward_difference(a, b)", "tokens_per_forward_difference(b, a)",
         "tests/evaluation/test_compare.py::test_tokens_per_forward_are_compared_question_by_question"),
        (", paired_difference(a, b)", ", paired_difference(b, a)", TEXTS + "two_rules_are_compared_sample_by_sample"),
    ],
    "unmask/runs/evaluate_text.py": [
        ("perplexity(judge, tokens if on_ids", "perplexity(judge, tokens.flip(1) if on_ids",
         TEXTS + "the_figures_are_those_of_the_texts"),
        ("if len(read_records(directory)) < count:", "if True:",
         TEXTS + "a_finished_evaluation_is_read_and_other_settings_are_refused"),
    ],
    "training/progress.py": [
        ("    if quiet:", "    if False:", PROGRESS + "no_terminal_and_a_quiet_process_see_nothing"),
        ("if not console.is_terminal:", "if False:", PROGRESS + "no_terminal_and_a_quiet_process_see_nothing"),
        ("            _shown.pop()", "            pass", PROGRESS + "inner_work_is_a_line_of_the_same_bar"),
    ],
    "data/prompt_file.py": [
        ("if line.strip()]", "]", PROMPTS + "the_command_and_the_function_write_the_same"),
        ("len(given) != 1", "not given", PROMPTS + "what_is_wrong_with_a_file_is_one_sentence"),
    ],
    "evaluation/replay.py": [
        ("past[row].append([position, place[token], first, last])", "past[0].append([position, place[token], first, last])",
         "tests/evaluation/test_report.py::test_revised_tokens_are_in_the_page_with_the_steps_at_which_they_were_there"),
        ("strict=True)][:length]", "strict=True)]", "tests/evaluation/test_report.py::test_a_shorter_canvas_ends_where_it_ends"),
        ("place.get(token, -1) for token in row", "0 for token in row", "tests/evaluation/test_report.py"),
    ],
    "samplers/moves.py": [
        ("accepted = uniform.log() < new - log_psi", "accepted = uniform.log() < log_psi - new",
         MOVES + "the_kernel_keeps_the_target_of_every_set_of_committed_positions"),
        ("masked = tokens[rows].masked_fill(read, environment.model.mask_id)", "masked = tokens[rows]",
         MOVES + "tokens_are_drawn_from_the_conditional_given_all_others"),
    ],
}

ROWS = SAMPLERS | DLM | POLICY | TWIST | RL | EVALUATION | REWARDS_AND_DATA | FROM_PYTHON
KNOWN: dict[str, str] = {}  # survivors (by str(mutation)) and why no test can see them
