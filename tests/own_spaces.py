"Environments of every kind of space, in which the best action is known."
import gymnasium as gym
import numpy as np

S = gym.spaces


class Best(gym.Env):
    "Shows samples of a space for ten steps; an action earns the more, the nearer it is to the best one."
    metadata = dict(render_modes=["rgb_array"])

    def __init__(self, shows, takes, best, length=10, render_mode=None):
        self.observation_space, self.action_space, self.best, self.length, self.render_mode = shows, takes, np.asarray(best), length, render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None: self.observation_space.seed(seed)
        self.left = self.length
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.left -= 1
        reward = 1 - 0.5 * np.abs(np.asarray(action, float) - self.best).mean()
        return self.observation_space.sample(), float(reward), self.left == 0, False, {}

    def render(self): return np.full((4, 4, 3), self.left, np.uint8)


class Shaped(gym.RewardWrapper):
    def __init__(self, env, bonus=0.0):
        super().__init__(env)
        self.bonus = bonus

    def reward(self, reward): return reward + self.bonus


ROOM = S.Dict(image=S.Box(0, 9, (2, 2), np.int64), mission=S.Text(5))
KINDS = dict(
    Levers=(S.Tuple((S.Discrete(3, start=2), S.Box(-1, 1, (2,)))), S.MultiDiscrete([2, 3], start=[1, 0]), [2, 1]), Switches=(S.MultiBinary((2, 2)), S.MultiBinary(3), [1, 0, 1]),
    Shifted=(S.MultiDiscrete([[2, 3]]), S.Discrete(3, start=-1), -1), Valve=(S.Dict(a=S.Discrete(2), b=S.Dict(c=S.Box(-1, 1, (1, 2), np.float64))), S.Box(5, 9, (1, 1), np.float64), [[7.5]]),
    Room=(ROOM, S.Discrete(2), 1), Sequence=(S.Sequence(S.Discrete(2)), S.Discrete(2), 1), Words=(S.Discrete(2), S.Text(3), "a"), Endless=(S.Discrete(2), S.Box(-np.inf, np.inf, (1,)), [0]),
    Photo=(S.Box(0, 255, (40, 40, 3), np.uint8), S.Discrete(2), 1), Cube=(S.Box(0, 1, (2, 3, 4, 5)), S.Discrete(2), 1), Both=(S.Discrete(2), S.Dict(a=S.Discrete(2)), 1))
for name, (shows, takes, best) in KINDS.items(): gym.register(f"{name}-v0", Best, kwargs=dict(shows=shows, takes=takes, best=best if name not in ("Words", "Both") else 0), disable_env_checker=True)
