"""`experiments.credit_view`: the game against brute force, the whole view on a tiny run, and what can go wrong."""

import csv
import html
import json
import re
import shutil
import subprocess
from itertools import combinations, permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from helpers import ToyEnv
from scipy import stats
from script_helpers import Driver, flags

import his_mpe as H
from baselines import hasac_mpe
from common import checkpoint
from common.bidexhands import BiDexHandsVecEnv
from common.mamujoco import SCENARIOS, MAMuJoCoVecEnv
from common.vecenv import RenderError
from experiments import credit_view
from experiments.credit import check, game, page, pictures, trust, video
from experiments.credit.episode import credit_of, play
from experiments.credit.load import Trained, load

TINY: dict[str, Any] = dict(
    scenario="simple_spread",
    seed=3,
    total_timesteps=400,
    num_envs=4,
    warmup_steps=200,
    train_interval=5,
    batch_size=32,
    hidden_sizes=(16, 16),
    buffer_size=400,
    eval_every=200,
    eval_episodes=2,
    eval_envs=2,
    log_every=100,
    save_every=400,
)
MPE = Driver(H, H.MPEVecEnv, TINY)
QUICK = ("--draws", "4", "--check-episodes", "3")
PNGS = ("credit.png", "trust.png", "check.png", "training.png")


# ---- the game --------------------------------------------------------------------------------------------------------
def random_game(num_agents: int, states: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(2**num_agents, states)) * 10


def table_of(num_agents: int, value: Any) -> np.ndarray:
    """A table with one state from a function of a set of agents."""
    coalitions = [{i for i in range(num_agents) if bits >> i & 1} for bits in range(2**num_agents)]
    return np.array([[float(value(c))] for c in coalitions])


def bits(coalition: Any) -> int:
    return sum(1 << i for i in coalition)


def by_definition(table: np.ndarray, num_agents: int) -> np.ndarray:
    """Shapley values (N, T) as the mean marginal contribution over all N! orders of joining."""
    orders = list(permutations(range(num_agents)))
    phi = np.zeros((num_agents, table.shape[1]))
    for order in orders:
        for place, i in enumerate(order):
            phi[i] += table[bits(order[: place + 1])] - table[bits(order[:place])]
    return phi / len(orders)


@pytest.mark.parametrize("num_agents", [2, 3, 5])
def test_exact_values_are_the_mean_over_all_orders(num_agents: int) -> None:
    table = random_game(num_agents)
    np.testing.assert_allclose(game.exact(table), by_definition(table, num_agents), atol=1e-10)


def test_a_masked_critic_gets_zeros_in_the_slots_of_absent_agents() -> None:
    """A critic of unequal action sizes whose coalitions are spelled out by hand."""
    rng = np.random.default_rng(1)
    state, actions = (rng.normal(size=(6, size)).astype(np.float32) for size in (2, 6))
    weights = torch.tensor([1.0, 10.0, 100.0, 1e3, 1e4, 1e5])

    def critic(s: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        return s.sum(1) + torch.sin(a @ weights)

    table = game.all_values(game.masked_value(critic, state, actions, [1, 3, 2]), 3)
    for who in ({}, {0}, {1}, {2}, {0, 1}, {0, 2}, {1, 2}, {0, 1, 2}):
        masked = actions.copy()
        for agent, slots in enumerate((slice(0, 1), slice(1, 4), slice(4, 6))):
            if agent not in who:
                masked[:, slots] = 0
        expected = critic(torch.from_numpy(state), torch.from_numpy(masked)).double().numpy()
        np.testing.assert_array_equal(table[bits(who)], expected)


@pytest.mark.parametrize("how", ["permutation", "antithetic"])
def test_draws(how: str) -> None:
    """Every draw is one order's contributions and sums to v(N) - v(empty); their mean is unbiased."""
    num_agents, table = 3, random_game(3)
    contributions = game.draw(game.lookup(table), num_agents, table.shape[1], 2000, how, seed=0)
    np.testing.assert_allclose(contributions.sum(1), np.broadcast_to(table[-1] - table[0], (2000, 5)), atol=1e-9)
    of_order = {}
    for order in permutations(range(3)):
        of_order[order] = np.zeros((3, 5))
        for place, i in enumerate(order):
            of_order[order][i] = table[bits(order[: place + 1])] - table[bits(order[:place])]

    def order_of(draw: int, state: int) -> tuple[int, ...]:
        (found,) = [o for o, x in of_order.items() if np.allclose(x[:, state], contributions[draw, :, state])]
        return found

    orders = [order_of(draw, state) for draw in range(20) for state in range(5)]
    assert len(set(orders)) == 6
    if how == "antithetic":
        assert [order_of(1, s) for s in range(5)] == [order_of(0, s)[::-1] for s in range(5)]
    error = contributions.mean(0) - by_definition(table, 3)
    assert (np.abs(error) < 5 * contributions.std(0) / np.sqrt(2000) + 1e-9).all()


def test_convexity_counts_the_inequalities() -> None:
    assert game.convexity(table_of(4, lambda c: len(c) ** 2)) == 1
    assert game.convexity(table_of(4, lambda c: len(c))) == 1  # additive: equalities
    assert game.convexity(table_of(4, lambda c: np.sqrt(len(c)))) == 0
    table, held = random_game(4), []
    for i, j in combinations(range(4), 2):
        for size in range(3):
            for rest in combinations(set(range(4)) - {i, j}, size):
                joined = table[bits({*rest, i, j})] - table[bits({*rest, j})]
                held.append(joined >= table[bits({*rest, i})] - table[bits(rest)])
    np.testing.assert_allclose(game.convexity(table), np.mean(held, 0))


def test_core() -> None:
    """The paper's Theorem 3 fails on an additive game (docs/paper_notes.md); adding a constant changes no core."""
    counter_example = table_of(2, lambda c: 10.0 * (0 in c))
    for table in (counter_example, counter_example + 7):
        np.testing.assert_allclose(game.hybrid(table), [[7.5], [2.5]])
        np.testing.assert_allclose(game.core_slack(table, game.hybrid(table)), -2.5)
        np.testing.assert_allclose(game.core_slack(table, game.exact(table)), 0, atol=1e-12)
    table = random_game(3)
    payoff = game.hybrid(table)
    np.testing.assert_allclose(payoff.sum(0), table[-1] - table[0])  # Theorem 2
    proper = [c for size in (1, 2) for c in combinations(range(3), size)]
    slack = np.min([payoff[list(c)].sum(0) - (table[bits(c)] - table[0]) for c in proper], axis=0)
    np.testing.assert_allclose(game.core_slack(table, payoff), slack)


def test_trust_measures_the_error_that_theory_gives() -> None:
    """RMSE of M draws = RMSE of one / sqrt(M); the spread of one draw is that over all orders."""
    table = random_game(3, states=40)
    found = trust.study(table, np.arange(40), draws=64)
    gains = np.array([[0.0] * 40] * 3)
    for order in permutations(range(3)):
        for place, i in enumerate(order):
            gains[i] += (table[bits(order[: place + 1])] - table[bits(order[:place])]) ** 2 / 6
    one = np.sqrt((gains - by_definition(table, 3) ** 2).mean())
    np.testing.assert_allclose(found.error["permutation"], one / np.sqrt(found.numbers), rtol=0.1)
    assert np.isnan(found.error["antithetic"][0]) and found.error["antithetic"][5] < found.error["permutation"][5]
    assert found.in_core["hybrid"] == np.mean(game.core_slack(table, game.hybrid(table)) >= 0)
    assert f"{100 * found.convex.mean():.1f} % of the inequalities" in found.lines()[1]


# ---- the check -------------------------------------------------------------------------------------------------------
def toy_run(contribution: list[float], believed: list[float], length: int = 4) -> Trained:
    """Agents that always act with 0.5, a reward of contribution . actions, a critic that believes something."""
    weights = np.array(contribution)

    def make_env(args: Any, num_envs: int) -> ToyEnv:
        return ToyEnv(num_envs, [1] * len(contribution), lambda joint: joint @ weights, length=length)

    def act(obs: list[torch.Tensor], deterministic: bool) -> list[np.ndarray]:
        assert deterministic
        return [np.full((len(o), 1), 0.5, np.float32) for o in obs]

    module = SimpleNamespace(make_env=make_env, min_q=lambda critic, state, a: a @ torch.tensor(critic))
    learner, args = SimpleNamespace(act=act, critic=believed), SimpleNamespace(seed=1)
    where = (Path("toy"), "toy", {}, args, module, learner)
    return Trained(*where, len(contribution), [1] * len(contribution), 0, 0.0, [])


def no_bar(iterable: Any = None, **named: Any) -> Any:
    return credit_view.tqdm(iterable, disable=True, **named)


def test_return_lost_and_rank_correlation() -> None:
    contribution = [3.0, 1.0, 2.0, -1.0]
    found = check.measure(toy_run(contribution, contribution), 5, "zero", None, no_bar)
    np.testing.assert_allclose(found.returns, 4 * 0.5 * sum(contribution))
    np.testing.assert_allclose(found.lost, np.outer(contribution, [4 * 0.5] * 5))
    np.testing.assert_allclose(found.credit, np.outer(contribution, [0.5] * 5))
    assert (found.rho, found.interval) == (pytest.approx(1), pytest.approx((1, 1)))
    assert found.verdict().startswith("HIGH")
    assert "| 3 | -0.5 [-0.5, -0.5] | -2 [-2, -2] |" in found.table()


def test_a_critic_that_is_wrong_is_called_low() -> None:
    found = check.measure(toy_run([3.0, 1.0, 2.0], [-3.0, -1.0, -2.0]), 3, "zero", None, no_bar)
    assert found.rho == pytest.approx(-1) and found.verdict().startswith("LOW")


def test_a_frozen_agent_repeats_its_first_action() -> None:
    """These agents always do, so nothing is lost and there is nothing to rank."""
    found = check.measure(toy_run([3.0, 1.0, 2.0], [3.0, 1.0, 2.0]), 3, "freeze", 8, no_bar)
    assert (found.lost == 0).all() and found.verdict().startswith("UNDEFINED")


def test_two_agents_prove_nothing_and_a_wide_interval_is_uncertain() -> None:
    two = check.measure(toy_run([3.0, 1.0], [1.0, 3.0]), 3, "zero", None, no_bar)
    assert two.verdict().startswith("TWO AGENTS: different agents")
    rng = np.random.default_rng(0)
    noisy = check.study("zero", np.zeros(6), rng.normal(size=(4, 6)) + 0.3 * np.arange(4)[:, None], rng.random((4, 6)))
    low, high = noisy.interval
    assert low < noisy.rho < high and not noisy.verdict().startswith("HIGH")


def test_spearman_is_scipys() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.integers(4, size=(2, 12)).astype(float)  # with ties
    assert check.spearman(x, y) == pytest.approx(stats.spearmanr(x, y)[0])


# ---- tint, panel, page -----------------------------------------------------------------------------------------------
def test_every_robot_has_geoms_for_each_agent_and_none_for_two() -> None:
    for scenario in SCENARIOS:
        env = MAMuJoCoVecEnv(scenario, 1)
        geoms = video.agent_geoms(env)
        together = np.concatenate(geoms)
        assert len(geoms) == env.num_agents and min(map(len, geoms)) > 0
        assert len(set(together)) == len(together)
        assert not np.isin(env.model.geom_bodyid[together], [0, 1]).any()  # neither floor nor torso
    env = MAMuJoCoVecEnv("HalfCheetah-2x3", 1)
    names = [{env.model.geom(int(g)).name for g in own} for own in video.agent_geoms(env)]
    assert names == [{"bthigh", "bshin", "bfoot"}, {"fthigh", "fshin", "ffoot"}]
    video.tinter(env)(np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))
    assert env.model.geom("bfoot").rgba.tolist() == [1, 0, 0, 1] and env.model.geom("fshin").rgba.tolist() == [
        0,
        0,
        1,
        1,
    ]


def test_left_and_right_hand() -> None:
    env = BiDexHandsVecEnv("ShadowHandCatchAbreast", 1)
    left, right = video.agent_geoms(env)
    assert len(left) == len(right) > 15 and not set(left) & set(right)
    assert all(env.model.body(int(b)).name.startswith("hand1_") for b in env.model.geom_bodyid[right])
    env.close()


def test_discs_take_the_tint() -> None:
    env = H.MPEVecEnv("simple_spread", 1)
    env.reset(0)
    plain = env.render(240, 240)
    video.tinter(env)(np.array([[1.0, 0.0, 0.5]] * 3))
    tinted = env.render(240, 240)
    pink = (np.abs(tinted.astype(int) - [255, 0, 128]).max(2) < 3).sum()
    assert pink > 300 and (np.abs(plain.astype(int) - [255, 0, 128]).max(2) < 3).sum() == 0


def test_colors_and_cursor() -> None:
    red, grey, blue = video.colors_of(np.array([5.0, 0.0, -5.0]), 5.0)
    assert red[0] > 0.6 > red[2] and blue[2] > 0.6 > blue[0] and np.ptp(grey) < 0.02
    phi = np.zeros((2, 10))
    phi[1, 7:] = 1.0
    panel = video.Panel(phi, 1.0)
    changed = [np.flatnonzero((panel.at(t) != panel.image).any(axis=(0, 2))) for t in (0, 9)]
    where = [(x.mean() + 0.5 - panel.left) / (panel.right - panel.left) for x in changed]
    assert where == pytest.approx([0.05, 0.95], abs=0.01)
    row = panel.image[panel.bottom - 4].astype(int)  # agent 1
    at = [row[round(panel.left + share * (panel.right - panel.left))] for share in (0.6, 0.8)]
    assert abs(at[0][0] - at[0][2]) < 10 and at[1][0] - at[1][2] > 80
    long = video.Panel(np.repeat(phi, 300, axis=1), 1.0)  # more steps than columns of pixels
    assert np.abs(long.image[panel.top : panel.bottom].astype(int) - panel.image[panel.top : panel.bottom]).mean() < 1


# ---- the whole view --------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return MPE.train(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def out(run_folder: Path) -> Path:
    assert credit_view.main([str(run_folder), "--episodes", "2", "--frames", "30", *QUICK]) == 0
    return run_folder / "credit"


def page_data(out: Path) -> dict[str, Any]:
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', (out / "credit.html").read_text())
    assert found
    return json.loads(found[1])


def test_raw_values_obey_the_sum_law_and_are_the_critics(run_folder: Path, out: Path) -> None:
    """The critic is read from the checkpoint by hand; 4 draws differ from the exact values, their sums do not."""
    raw = np.load(out / "credit.npz")
    assert raw["phi"].shape == (3, 50) and raw["step"].tolist() == 2 * list(range(25))
    np.testing.assert_allclose(raw["phi"].sum(0), raw["v_everybody"] - raw["v_nobody"], atol=1e-9)
    learner = checkpoint.load(run_folder / "checkpoints/best.pt")["learner"]
    critic = H.TwinCritic(54, 15, (16, 16))
    critic.load_state_dict(learner["critic"])
    table = np.empty((8, 50))
    for who in range(8):
        actions = raw["actions"].copy()
        for agent in range(3):
            if not who >> agent & 1:
                actions[:, 5 * agent : 5 * agent + 5] = 0
        with torch.no_grad():
            table[who] = torch.minimum(*critic(torch.from_numpy(raw["state"]), torch.from_numpy(actions))).numpy()
    np.testing.assert_allclose(raw["v_everybody"], table[7], rtol=1e-5)
    np.testing.assert_allclose(raw["v_nobody"], table[0], rtol=1e-5)
    run = load(run_folder)
    exact = credit_of(run, raw["state"], raw["actions"], None)
    np.testing.assert_allclose(exact.phi, by_definition(table, 3), atol=1e-5 * np.abs(table).max())
    assert np.abs(raw["phi"] - exact.phi).max() > 1e-4 * np.abs(exact.phi).max()
    with open(out / "credit.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["credit_2"]) for row in rows] == raw["phi"][2].tolist()
    assert [float(row["return_so_far"]) for row in rows] == raw["return_so_far"].tolist()


def test_the_permutation_estimate_is_that_of_training(run_folder: Path, out: Path) -> None:
    """`HistoricalCredit` of the script, given the same permutations, says the same."""
    raw = np.load(out / "credit.npz")
    run = load(run_folder)
    batch: Any = SimpleNamespace(state=torch.from_numpy(raw["state"]), actions=torch.from_numpy(raw["actions"]))
    args = H.Args(num_coalitions=4)
    credit = H.HistoricalCredit(run.learner.critic, batch, [5, 5, 5], torch.Generator().manual_seed(0), args)
    np.testing.assert_allclose(raw["phi"], credit.phi.detach().numpy(), atol=1e-4)


def test_the_episode_is_the_first_of_the_runs_own_evaluation(run_folder: Path, out: Path) -> None:
    with open(run_folder / "eval.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if int(row["global_step"]) == load(run_folder).global_step]
    raw = np.load(out / "credit.npz")
    assert raw["return_so_far"][24] == pytest.approx(float(rows[0]["return"]), rel=1e-4)
    assert raw["return_so_far"][25] == raw["reward"][25] and raw["episode"][25] == 1


def test_frames_and_pictures_are_not_blank(out: Path) -> None:
    frames = imageio.imread(out / "credit.mp4", plugin="FFMPEG")
    assert frames.shape[:1] == (25,) and frames.shape[3] == 3  # every second step of 50
    for frame in frames[[0, 12, 24]]:
        assert frame[: video.SIZE].std() > 10 and frame[video.SIZE :].std() > 10
    assert np.abs(frames[0].astype(int) - frames[24]).max() > 50
    for name in PNGS:
        picture = imageio.imread(out / name)
        assert picture.shape[0] > 300 and picture[:, :, :3].std() > 10
    with open(out / "check.csv", newline="") as file:
        assert [row["agent"] for row in csv.DictReader(file)] == ["0", "1", "2"]


def test_the_page_holds_the_npz_and_needs_no_network(out: Path) -> None:
    raw, data, text = np.load(out / "credit.npz"), page_data(out), (out / "credit.html").read_text()
    for key in ("episode", "step", "reward", "return_so_far", "v_everybody", "v_nobody", "gap", "phi"):
        np.testing.assert_array_equal(np.array(data[key]), raw[key], err_msg=key)
    assert data["frame_steps"] == list(range(0, 50, 2))
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', text)
    assert len(sources) == 5 and all(source.startswith("data:") for source in sources)
    assert not re.search(r"https?://|@import|fetch\(", text)
    assert (
        "supermodularity" in html.unescape(text) and "Spearman" in text and "@" not in re.sub(r"base64,\S+", "", text)
    )


DOM = """
const elements = {};
function element(tag) {
  const kids = {};
  return {tag, style: {}, children: [0, 1, 2].map(() => ({})), listeners: {}, rows: [],
    addEventListener(name, f) { this.listeners[name] = f; }, appendChild(x) { this.rows.push(x); },
    querySelector(name) { return kids[name] ||= {style: {}}; }, pause() {}, fills: [],
    getContext() { const me = this; return {fillRect(...box) { me.fills.push([this.fillStyle, ...box]); }}; }};
}
globalThis.document = {createElement: element, getElementById: id => elements[id] ||= element(id)};
document.getElementById("data").textContent = process.argv[3];
Object.assign(document.getElementById("map"), {width: 1000, height: 120});
(0, eval)(process.argv[2]);
const slider = elements.slider;
slider.value = "37";
slider.listeners.input();
const rows = elements.bars.rows.map(row => [row.children[1].textContent, row.querySelector("i").style.width]);
console.log(JSON.stringify({max: slider.max, step: elements.step.textContent, words: elements.words.textContent, rows,
  time: elements.video.currentTime, fills: elements.map.fills.length, cursor: elements.map.fills.at(-1)}));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="no node on this machine")
def test_the_slider_of_the_page(out: Path, tmp_path: Path) -> None:
    """The page's own script, run by node with a stand-in for the document: the slider moves everything."""
    code = (out / "credit.html").read_text().rpartition("<script>")[2].partition("</script>")[0]
    data = page_data(out)
    (tmp_path / "dom.js").write_text(DOM)
    words = ["node", "--", str(tmp_path / "dom.js"), code, json.dumps(data)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["max"] == 49 and shown["step"] == "12 of episode 1"
    assert f"return so far {data['return_so_far'][37]:.2f}" in shown["words"]
    for agent, (text, width) in enumerate(shown["rows"]):
        value = data["phi"][agent][37]
        assert float(text) == pytest.approx(value, abs=6e-5)
        assert float(width.rstrip("%")) == pytest.approx(min(1, abs(value) / data["scale"]) * 50, abs=1e-6)
    assert shown["time"] == pytest.approx((18 + 0.5) / data["fps"])  # frame 18 shows step 36, the last one before 37
    assert shown["fills"] == 2 * (3 * 50 + 1) and shown["cursor"][0] == "#000"
    assert shown["cursor"][1] == pytest.approx(37.5 / 50 * 1000 - 1)


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_the_page_in_a_browser(out: Path) -> None:
    words = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", (out / "credit.html").as_uri()]
    dom = subprocess.run(words, capture_output=True, text=True, timeout=120).stdout
    assert (
        '<span id="step">0 of episode 0</span>' in dom and len(re.findall(r"<th>agent \d", dom)) == 3
    )  # filled in by the script


# ---- what can go wrong -----------------------------------------------------------------------------------------------
def test_without_a_renderer_all_but_the_video_is_made(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def render(*size: int) -> None:
        raise RenderError("cannot render: no working OpenGL")

    monkeypatch.setattr(H.MPEVecEnv, "render", render)
    (tmp_path / "credit.mp4").write_text("of an earlier call")
    assert credit_view.main([str(run_folder), "--out", str(tmp_path), "--exact", *QUICK[2:]]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "credit.mp4" in line]
    assert len(lines) == 1 and "no working OpenGL" in lines[0]
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {*PNGS, "credit.html", "credit.npz", "credit.csv", "check.csv"}
    assert 'id="novideo"' in (tmp_path / "credit.html").read_text() and page_data(tmp_path)["frame_steps"] == []


def test_a_hasac_run_shows_what_its_critic_would_have_given(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert hasac_mpe.main(flags(TINY | {"runs_dir": tmp_path})) == 0
    folder = tmp_path / "hasac_mpe/simple_spread/seed3"
    assert credit_view.main([str(folder), "--frames", "0", *QUICK]) == 0
    printed = capsys.readouterr().out
    assert "had no part in training" in printed and "training logged no credit/shapley" in printed
    raw = np.load(folder / "credit/credit.npz")
    np.testing.assert_allclose(raw["phi"].sum(0), raw["v_everybody"] - raw["v_nobody"], atol=1e-9)
    assert not (folder / "credit/credit.mp4").exists()


def copy_of(run_folder: Path, to: Path, change: Any = None, drop: str = "") -> Path:
    shutil.copytree(run_folder, to, ignore=shutil.ignore_patterns("credit", "step_*", "events*"))
    config = json.loads((to / "config.json").read_text())
    if change:
        change(config)
        (to / "config.json").write_text(json.dumps(config))
    if drop:
        (to / drop).unlink()
    return to


@pytest.mark.parametrize(
    ("change", "drop", "flags", "expected"),
    [
        (None, "config.json", [], "no run there: cannot read config.json"),
        (None, "checkpoints/best.pt", [], "no critic there: checkpoints/best.pt is missing"),
        (lambda c: c.pop("args"), "", [], "its config.json is not that of a run"),
        (lambda c: c.update(command="python other.py"), "", [], "made by other: it takes runs of"),
        (lambda c: c.update(script="happo"), "", [], "happo.py has no critic of joint actions"),
        (lambda c: c["args"].update(weather=1), "", [], "has weather, which his_mpe.py of this checkout lacks"),
        (lambda c: c["args"].update(hidden_sizes=[8, 8]), "", [], "does not fit his_mpe.py"),
        (None, "", ["--draws", "0"], "--draws: 0: must be a whole number, at least 1"),
        (None, "", ["--episodes", "x"], "--episodes: x: must be a whole number, at least 1"),
        (None, "", ["--draws", "8", "--exact"], "--exact: not allowed with argument --draws"),
        (None, "", ["--check-how", "kill"], "--check-how: invalid choice: 'kill' (choose from"),
    ],
)
def test_a_mistake_is_one_line_and_makes_nothing(
    change: Any, drop: str, flags: list[str], expected: str, run_folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    folder = copy_of(run_folder, tmp_path / "run", change, drop)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        credit_view.main([str(folder), *flags])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and expected in error, error
    assert error.startswith("experiments.credit_view: error: ") and not (folder / "credit").exists()


def test_exact_is_refused_for_ten_agents(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("experiments.credit.load.load", lambda folder: toy_run([1.0] * 10, [1.0] * 10))
    with pytest.raises(SystemExit):
        credit_view.main(["anywhere", "--exact"])
    assert "--exact: takes 2^N critic calls; N is 10, at most 8" in capsys.readouterr().err


def test_an_older_run_gets_defaults_and_says_so(run_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(run_folder, tmp_path / "run", lambda c: c["args"].pop("profile"))
    assert load(folder).notes == ["an older run: defaults taken for profile"]


def test_a_damaged_checkpoint_is_named(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = copy_of(run_folder, tmp_path / "run")
    path = folder / "checkpoints/best.pt"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(SystemExit):
        credit_view.main([str(folder)])
    assert "best.pt: truncated or no checkpoint" in capsys.readouterr().err


def test_training_curves_skip_torn_lines_and_missing_values(tmp_path: Path) -> None:
    lines = ['{"global_step": 1, "credit/shapley_10": 1.0, "credit/shapley_9": null}', '{"global_step": 2, "credit/sh']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    metrics = pictures.read_metrics(tmp_path)
    assert len(metrics) == 1
    absent = pictures.plot_training(metrics, tmp_path / "training.png")
    assert "credit/shapley" not in absent and "credit/efficiency_gap" in absent and len(absent) == 5
    assert pictures.natural("a_9") < pictures.natural("a_10")


def test_long_episodes_are_averaged_in_blocks_within_an_episode() -> None:
    first, sizes, most = pictures.blocks(np.array([*range(700), *range(300)]))
    assert most == 4 and sizes.sum() == 1000 and set(sizes) == {4} and 700 in first
    first, sizes, most = pictures.blocks(np.array([*range(3), *range(2)]), most=3)
    assert (first.tolist(), sizes.tolist(), most) == ([0, 2, 3], [2, 1, 2], 2)


def test_playing_records_what_was_played(run_folder: Path) -> None:
    """Each snapshot holds the state that stands beside it."""
    run = load(run_folder)
    recording = play(run, 1, no_bar)
    env = run.make_env(1)
    env.reset(0)
    for t in (3, 20):
        env.set_state(recording.snapshots[t])
        step = env.step([a[None] for a in np.split(recording.actions[t], 3)])
        np.testing.assert_array_equal(step.final_state[0], recording.state[t + 1])
        assert step.reward[0] == recording.reward[t]
    assert page.data_of(recording, credit_of(run, recording.state, recording.actions, 2), [], 1)["fps"] == 1
