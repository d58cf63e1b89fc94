"""Optimisers: what a training step does to the parameters, from their gradients.

An optimiser updates all its parameters in place, in one parallel pass over their memory.  The
result is that of the formulas in plain NumPy, bit for bit, whatever the number of
threads and the instruction set.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import numpy as np

from convkern import _kernels
from convkern.arrays import as_array, check_writeable, memory_order, to_memory
from convkern.geometry import integer
from convkern.nn.base import Array, Parameter
from convkern.nn.common import as_parameters, as_state, flag, real, refuse_rest, take
from convkern.threads import get_num_threads

Options: TypeAlias = dict[str, Any]
State: TypeAlias = dict[str, Any]
#: One parameter's update, as a kernel takes it: the gradient; the data and the arrays of the
#: state, which it changes; the numbers of its formula.
Update: TypeAlias = tuple[Array, list[Array], tuple[float, ...]]

_NOTHING: State = {}


class Optimizer(ABC):
    """The base of the optimisers: groups of parameters, their options and their state.

    Parameters
    ----------
    params : iterable of Parameter, or of dict
        What to update.  A dict is a group with options of its own, such as
        ``{"params": [...], "lr": 0.1}``; what it leaves out has the default.
    defaults : dict
        The options of this optimiser and their values.

    Attributes
    ----------
    param_groups : list of dict
        For each group its parameters, ``"params"``, and its options, which may be changed
        between steps: ``optimizer.param_groups[0]["lr"] = 0.01``.
    state : dict
        For each parameter that was updated: ``"step"``, how often, and arrays of its shape.

    Notes
    -----
    A parameter without a gradient (see `Parameter.has_grad`) is passed over.  Its memory may be
    laid out in any way; where that has gaps or differs from the gradient's, copies are made.
    Where parameters share memory (one the transpose of another, say), every one of them makes
    its step, one after the other.

    Examples
    --------
    Every optimiser takes groups:

    >>> from convkern.nn import SGD, Linear
    >>> layer = Linear(2, 1)
    >>> weights = {"params": layer.weight, "weight_decay": 1e-4}
    >>> optimizer = SGD([weights, {"params": layer.bias}], lr=0.1)
    >>> [group["weight_decay"] for group in optimizer.param_groups]
    [0.0001, 0.0]
    """

    def __init__(self, params: Iterable[Parameter] | Iterable[Options], defaults: Options) -> None:
        self.defaults = self._checked(defaults)
        self.param_groups: list[Options] = []
        self.state: dict[Parameter, State] = {}
        if isinstance(params, Mapping) or not isinstance(params, Iterable):
            raise TypeError(
                f"params must be an iterable of Parameters or of dicts, got {type(params).__name__}"
            )
        given: list[Any] = list(params)
        if not given:
            raise ValueError("params must hold at least one parameter, got none")
        for group in given if isinstance(given[0], Mapping) else [{"params": given}]:
            self.add_param_group(group)

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Add parameters with options of their own.

        Parameters
        ----------
        group : mapping
            ``"params"``, a Parameter or an iterable of them, and options other than the defaults.

        Raises
        ------
        TypeError, ValueError
            If it is something else, a value is not accepted, or a parameter is there already.
        """
        if not isinstance(group, Mapping) or "params" not in group:
            raise TypeError(f"a group must be a dict with 'params', got {group!r}")
        for name in group:
            if name != "params" and name not in self.defaults:
                raise ValueError(f"a group's options are {', '.join(self.defaults)}, got {name!r}")
        params = as_parameters(group["params"])
        known = {parameter for parameter, _ in self._members()}
        for parameter in params:
            if parameter in known:
                raise ValueError(f"params must hold each parameter once, got {parameter} twice")
            known.add(parameter)
        self.param_groups.append({"params": params, **self._checked({**self.defaults, **group})})

    def zero_grad(self) -> None:
        """Make the gradients of all parameters zero: their arrays are given up, not filled."""
        for parameter, _ in self._members():
            parameter.zero_grad()

    def step(self) -> None:
        """Update every parameter that has a gradient, in place.

        Raises
        ------
        TypeError, ValueError
            If an option has been changed to a value that is not accepted, or a parameter's
            data to an array that its gradient or state does not fit.  Nothing has changed then.
        """
        due = []
        for group in self.param_groups:
            options = self._checked(group)
            names = self._names(options)
            due += [(p, options, names) for p in group["params"] if p.has_grad]
        if _kernels.share_extents([parameter.data for parameter, _, _ in due]):
            for parameter, _, _ in due:
                self._check(parameter, self.state.get(parameter, _NOTHING))
            for one in due:
                self._apply([one])
        else:
            self._apply(due)

    def _check(self, parameter: Parameter, state: State) -> None:
        """Raise unless the data can be changed, and gradient and state fit it."""
        check_writeable(parameter.data, "data")
        _check_like(parameter.data, {"grad": parameter.grad, **state})

    def _apply(self, due: list[tuple[Parameter, Options, tuple[str, ...]]]) -> None:
        """Update parameters that have each a memory of their own, all at once."""
        updates, copies, states = [], [], []
        for parameter, options, names in due:
            state = self._completed(parameter, names)
            step = state["step"] + 1
            states.append((parameter, state, step))
            rule, grad = self._rule(options, step), parameter.grad
            arrays = [parameter.data]
            for name in names:
                arrays.append(state[name])
            if not _kernels.are_alike(arrays, grad):
                self._check(parameter, state)
                order = memory_order(parameter.data)
                grad, memory = to_memory(grad, order), [to_memory(a, order) for a in arrays]
                for array, dense in zip(arrays, memory, strict=True):
                    if not np.may_share_memory(array, dense):
                        copies.append((array.transpose(order), dense))
                arrays = memory
            updates.append((grad, arrays, rule))
        self._update(updates)
        for parameter, state, step in states:
            state["step"] = step
            self.state[parameter] = state
        for array, dense in copies:
            array[...] = dense

    @abstractmethod
    def _checked(self, options: Mapping[str, Any]) -> Options:
        """Return the options of this optimiser as plain numbers and bools, or raise."""

    @abstractmethod
    def _names(self, options: Options) -> tuple[str, ...]:
        """Return the names of the arrays that are kept of each parameter."""

    @abstractmethod
    def _rule(self, options: Options, step: int) -> tuple[float, ...]:
        """Return the numbers of the update that is the `step`-th of a parameter."""

    @abstractmethod
    def _update(self, updates: list[Update]) -> None:
        """Change data and state as the formula says, in one kernel call."""

    def _members(self) -> list[tuple[Parameter, int]]:
        """Return the parameters of all groups, each with the place of its group."""
        return [(p, g) for g, group in enumerate(self.param_groups) for p in group["params"]]

    def _completed(self, parameter: Parameter, names: tuple[str, ...]) -> State:
        """Return what is kept of a parameter by its names; what is new to it is zero."""
        old = self.state.get(parameter, _NOTHING)
        if tuple(old) == ("step", *names):
            return old
        state: State = {"step": old.get("step", 0)}
        for name in names:
            state[name] = old[name] if name in old else np.zeros_like(parameter.data)
        return state

    def state_dict(self) -> dict[str, Any]:
        """Return options and state by name: all that an exact continuation needs.

        Returns
        -------
        dict of str to array, number, bool or list of numbers
            ``groups.<g>.params`` is how many parameters a group has, ``groups.<g>.<option>`` its
            options, ``state.<i>.<name>`` the state of the i-th parameter of all groups.  Arrays
            are copies; everything else is as JSON gives it back.

        Examples
        --------
        >>> import numpy as np
        >>> from convkern.nn import SGD, Parameter
        >>> parameter = Parameter(np.zeros(2))
        >>> optimizer = SGD([parameter], lr=0.1, momentum=0.9)
        >>> parameter.add_grad(np.ones(2))
        >>> optimizer.step()
        >>> state = optimizer.state_dict()
        >>> state["groups.0.params"], state["groups.0.lr"], state["state.0.momentum_buffer"]
        (1, 0.1, array([1., 1.]))
        """
        result: dict[str, Any] = {}
        for g, group in enumerate(self.param_groups):
            result[f"groups.{g}.params"] = len(group["params"])
            for name, value in self._checked(group).items():
                result[f"groups.{g}.{name}"] = list(value) if isinstance(value, tuple) else value
        for i, (parameter, g) in enumerate(self._members()):
            if parameter in self.state:
                names = self._names(self.param_groups[g])
                for name, value in self._completed(parameter, names).items():
                    result[f"state.{i}.{name}"] = value if name == "step" else value.copy()
        return result

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned, of an optimiser of the same parameters.

        Everything is checked first: a `state` that does not fit changes nothing.

        Parameters
        ----------
        state : mapping
            Options and state by name; arrays are copied and cast to the parameter's dtype.

        Raises
        ------
        KeyError
            If names are missing or unexpected.
        TypeError, ValueError
            If a value is not accepted, or an array or a number of parameters does not fit.

        Examples
        --------
        >>> import numpy as np
        >>> from convkern.nn import SGD, Parameter
        >>> saved = SGD([Parameter(np.zeros(2))], lr=0.1, momentum=0.9).state_dict()
        >>> optimizer = SGD([Parameter(np.zeros(2))])
        >>> optimizer.load_state_dict(saved)
        >>> optimizer.param_groups[0]["momentum"]
        0.9
        """
        left = as_state(state)
        groups: list[Options] = []
        states: dict[Parameter, State] = {}
        for g, group in enumerate(self.param_groups):
            count = take(left, f"groups.{g}.params")
            if count != len(group["params"]):
                raise ValueError(
                    f"group {g} has {len(group['params'])} parameters, in the state {count}"
                )
            given = {name: take(left, f"groups.{g}.{name}") for name in self.defaults}
            groups.append(self._checked(given))
        for i, (parameter, g) in enumerate(self._members()):
            step = f"state.{i}.step"
            if step in left:
                states[parameter] = {"step": integer(left.pop(step), step, 1)}
                for name in self._names(groups[g]):
                    key = f"state.{i}.{name}"
                    states[parameter][name] = _copy_like(parameter.data, take(left, key), key)
        refuse_rest(left)
        for group, options in zip(self.param_groups, groups, strict=True):
            group.update(options)
        self.state = states


def _check_like(data: Array, state: State) -> None:
    """Raise unless the arrays of a state have the data's shape and dtype."""
    for name, array in state.items():
        if name != "step" and (array.shape, array.dtype) != (data.shape, data.dtype):
            raise ValueError(
                f"{name} must have the data's shape {data.shape} and dtype {data.dtype}, got "
                f"{array.shape} and {array.dtype}"
            )


def _copy_like(data: Array, value: Any, name: str) -> Array:
    """Return a copy of an array of a state, laid out as the data, or raise."""
    array = as_array(value, name, (data.ndim,))
    if array.shape != data.shape:
        raise ValueError(f"{name} must have shape {data.shape}, got {array.shape}")
    copy = np.empty_like(data)
    copy[...] = array
    return copy


class SGD(Optimizer):
    r"""Stochastic gradient descent, with momentum.

    .. math::
        g' &= g + \lambda p \\
        b &= \mu b + (1 - \tau) g' \quad\text{(at first } b = g'\text{)} \\
        p &= p - \eta b

    with the learning rate :math:`\eta`, the momentum :math:`\mu`, the dampening :math:`\tau` and
    the weight decay :math:`\lambda`.  Nesterov's momentum subtracts :math:`\eta (g' + \mu b)`
    (Sutskever et al., *On the importance of initialization and momentum in deep learning*, 2013).

    Parameters
    ----------
    params : iterable of Parameter, or of dict
        What to update; dicts are groups with options of their own, see `Optimizer`.
    lr, momentum, dampening, weight_decay : float
        As above; none but the dampening may be negative.
    nesterov : bool
        Nesterov's momentum, which needs a momentum and no dampening.
    maximize : bool
        Go up the gradient instead of down.

    Raises
    ------
    TypeError, ValueError
        If an option is not accepted, or there are no parameters.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.nn import SGD, Parameter
    >>> parameter = Parameter(np.array([1.0, 2.0]))
    >>> optimizer = SGD([parameter], lr=0.5, momentum=0.9)
    >>> parameter.add_grad(np.array([1.0, -1.0]))
    >>> optimizer.step()
    >>> parameter.data
    array([0.5, 2.5])
    """

    def __init__(
        self,
        params: Iterable[Parameter] | Iterable[Options],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "dampening": dampening,
                "weight_decay": weight_decay,
                "nesterov": nesterov,
                "maximize": maximize,
            },
        )

    def _checked(self, options: Mapping[str, Any]) -> Options:
        """Return the options as plain numbers and bools, or raise."""
        checked: Options = {
            "lr": real(options["lr"], "lr", 0),
            "momentum": real(options["momentum"], "momentum", 0),
            "dampening": real(options["dampening"], "dampening"),
            "weight_decay": real(options["weight_decay"], "weight_decay", 0),
            "nesterov": flag(options["nesterov"], "nesterov"),
            "maximize": flag(options["maximize"], "maximize"),
        }
        if checked["nesterov"] and (checked["momentum"] == 0 or checked["dampening"] != 0):
            raise ValueError(
                "nesterov needs a momentum and no dampening, got momentum="
                f"{checked['momentum']} and dampening={checked['dampening']}"
            )
        return checked

    def _names(self, options: Options) -> tuple[str, ...]:
        """Return the name of the momentum, if there is one."""
        return ("momentum_buffer",) if options["momentum"] else ()

    def _rule(self, options: Options, step: int) -> tuple[float, ...]:
        """Return the numbers of `_kernels.sgd`."""
        return (
            options["lr"],
            options["weight_decay"],
            options["momentum"],
            1 if step == 1 else 1 - options["dampening"],
            options["nesterov"],
            options["maximize"],
        )

    def _update(self, updates: list[Update]) -> None:
        """Descend."""
        _kernels.sgd(updates, get_num_threads())


class Adam(Optimizer):
    r"""Adam: steps of about the learning rate, whatever the scale of the gradient.

    .. math::
        m &= \beta_1 m + (1 - \beta_1) g, \qquad v = \beta_2 v + (1 - \beta_2) g^2 \\
        p &= p - \eta \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    at the t-th update of a parameter, from :math:`m = v = 0`; the weight decay
    :math:`\lambda p` is added to the gradient :math:`g` first (Kingma and Ba, *Adam: a method
    for stochastic optimization*, 2015).

    Parameters
    ----------
    params : iterable of Parameter, or of dict
        What to update; dicts are groups with options of their own, see `Optimizer`.
    lr : float
        The learning rate, not negative.
    betas : (float, float)
        How much of the averages of the gradient and of its square is kept, 0 to below 1.
    eps : float
        Added to the root, not negative.
    weight_decay : float
        Not negative.
    amsgrad : bool
        Divide by the root of the largest :math:`v` so far (Reddi et al., *On the convergence of
        Adam and beyond*, 2018).
    maximize : bool
        Go up the gradient instead of down.

    Raises
    ------
    TypeError, ValueError
        If an option is not accepted, or there are no parameters.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.nn import Adam, Parameter
    >>> parameter = Parameter(np.array([1.0, 2.0]))
    >>> optimizer = Adam([parameter], lr=0.5)
    >>> parameter.add_grad(np.array([100.0, -0.01]))
    >>> optimizer.step()
    >>> parameter.data.round(3)
    array([0.5, 2.5])
    """

    #: Whether the weight decay shrinks the parameter itself instead of joining the gradient.
    _decoupled: ClassVar[bool] = False

    def __init__(
        self,
        params: Iterable[Parameter] | Iterable[Options],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "amsgrad": amsgrad,
                "maximize": maximize,
            },
        )

    def _checked(self, options: Mapping[str, Any]) -> Options:
        """Return the options as plain numbers and bools, or raise."""
        betas = options["betas"]
        if not isinstance(betas, Sequence) or len(betas) != 2:
            raise TypeError(f"betas must be a pair of numbers, got {betas!r}")
        return {
            "lr": real(options["lr"], "lr", 0),
            "betas": tuple(real(beta, "betas", 0, below=1) for beta in betas),
            "eps": real(options["eps"], "eps", 0),
            "weight_decay": real(options["weight_decay"], "weight_decay", 0),
            "amsgrad": flag(options["amsgrad"], "amsgrad"),
            "maximize": flag(options["maximize"], "maximize"),
        }

    def _names(self, options: Options) -> tuple[str, ...]:
        """Return the names of the averages, and of the maximum if there is one."""
        names = ("exp_avg", "exp_avg_sq")
        return (*names, "max_exp_avg_sq") if options["amsgrad"] else names

    def _rule(self, options: Options, step: int) -> tuple[float, ...]:
        """Return the numbers of `_kernels.adam`."""
        lr, decay = options["lr"], options["weight_decay"]
        beta1, beta2 = options["betas"]
        return (
            lr / (1 - beta1**step),
            0.0 if self._decoupled else decay,
            1 - lr * decay if self._decoupled else 1.0,
            beta1,
            beta2,
            math.sqrt(1 - beta2**step),
            options["eps"],
            options["maximize"],
        )

    def _update(self, updates: list[Update]) -> None:
        """Descend."""
        _kernels.adam(updates, get_num_threads())


class AdamW(Adam):
    r"""Adam whose weight decay is apart from the gradient: first :math:`p = p - \eta \lambda p`.

    Source: Loshchilov and Hutter, *Decoupled weight decay regularization*, 2019.

    Parameters
    ----------
    params, lr, betas, eps, weight_decay, amsgrad, maximize
        As in `Adam`, but that there is a weight decay by default.

    Raises
    ------
    TypeError, ValueError
        If an option is not accepted, or there are no parameters.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.nn import AdamW, Parameter
    >>> parameter = Parameter(np.array([1.0, 2.0]))
    >>> optimizer = AdamW([parameter], lr=0.5, weight_decay=0.1)
    >>> parameter.add_grad(np.zeros(2))
    >>> optimizer.step()
    >>> parameter.data
    array([0.95, 1.9 ])
    """

    _decoupled = True

    def __init__(
        self,
        params: Iterable[Parameter] | Iterable[Options],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize)
