"""Lets mypy see through `Proxy[T]`: attributes, operators, calls and items are those of `T`.

Enable it in the configuration of mypy:

    [tool.mypy]
    plugins = ["proxystore.mypy_plugin"]

Without it, whatever a proxy forwards to its target is `Any`. mypy imports this module, so mypy
is installed when it is; nothing else in the package imports it.

What no plugin can do: a `Proxy[int]` is not accepted where an `int` is asked for (declare
`ProxyOr[int]`, or pass `extract(proxy)`), and a proxy matches every protocol of operators with
`Any` (``sorted(proxy)`` is a ``list[Any]``).

With mypy 1.15 an operator that the target does not have is `Any` and no error: mypy does not say
there which of the operands it is about.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from mypy.checker import TypeChecker
from mypy.checkmember import analyze_member_access
from mypy.errorcodes import OPERATOR
from mypy.maptype import map_instance_to_supertype
from mypy.nodes import (
    ArgKind,
    DictExpr,
    Expression,
    IndexExpr,
    LambdaExpr,
    ListExpr,
    MemberExpr,
    SetExpr,
    TempNode,
    TupleExpr,
    TypeInfo,
)
from mypy.plugin import AttributeContext, MethodContext, Plugin
from mypy.subtypes import is_subtype
from mypy.types import (
    AnyType,
    CallableType,
    Instance,
    ProperType,
    Type,
    TypedDictType,
    TypeOfAny,
    TypeType,
    TypeVarType,
    UninhabitedType,
    UnionType,
    get_proper_type,
)
from mypy.version import __version__

__all__ = ["ProxyStoreMypyPlugin", "plugin"]

PROXY = "proxystore.proxy.Proxy"
OPERATORS = "proxystore._operators.Transparent"  # the stub that declares what a proxy forwards

ARITHMETIC = frozenset(
    "add sub mul matmul truediv floordiv mod divmod pow lshift rshift and xor or".split()
)
COMPARISONS = frozenset("__lt__ __le__ __eq__ __ne__ __gt__ __ge__".split())
# Called on the target as they are. What is not here (__len__, __bool__, __int__ and so on) has
# one type for all targets.
OTHERS = frozenset(
    """
    __neg__ __pos__ __abs__ __invert__ __round__ __trunc__ __floor__ __ceil__
    __getitem__ __setitem__ __delitem__ __contains__ __iter__ __reversed__ __next__
    __enter__ __exit__ __aiter__ __anext__ __await__ __aenter__ __aexit__
    """.split()
)

# Literals are checked anew against the target's signature, which may say what is in an empty
# list. All other operands keep the type they have been given: to check them once more at each
# operator would take time exponential in the depth of an expression.
LITERALS = (DictExpr, LambdaExpr, ListExpr, SetExpr, TupleExpr)

# Proxies of proxies of proxies; a class may be a proxy of itself.
DEEPEST = 5


class ProxyStoreMypyPlugin(Plugin):
    """Answers for proxies what mypy would say of their targets.

    Proxies are `proxystore.proxy.Proxy` and its subclasses. What a subclass declares itself is
    its own; all else is the target's. Where the target's type is not known (`Proxy` alone, or of
    an unbound type variable), mypy's own answer stays.
    """

    _depth = 0

    def get_attribute_hook(self, fullname: str) -> Callable[[AttributeContext], Type] | None:
        """Return what types `proxy.name`, and `proxy.name = value`."""
        owner, _, name = fullname.rpartition(".")
        if owner == OPERATORS:  # __setattr__ is all it has that is no method
            return self._assigned  # (mypy 1.15 asks for the name that is assigned to)
        info = self._proxy_class(owner)
        if info is None:
            return None
        if name == "__class__":
            return self._class_of_target
        return None if info.get(name) else partial(self._attribute, name)

    def get_method_hook(self, fullname: str) -> Callable[[MethodContext], Type] | None:
        """Return what types operators, calls and items of a proxy."""
        owner, _, name = fullname.rpartition(".")
        if not (name.startswith("__") and name.endswith("__")):
            return None
        info = self._proxy_class(owner)
        found = info and info.get(name)
        definer = found and found.node and getattr(found.node, "info", None)
        if definer is None or definer.fullname not in (PROXY, OPERATORS):
            return None
        bare = name[2:-2]
        if bare in ARITHMETIC or name in COMPARISONS:
            return partial(self._operator, name)
        if bare[:1] == "r" and bare[1:] in ARITHMETIC:
            return partial(self._reflected, f"__{bare[1:]}__")
        if bare[:1] == "i" and bare[1:] in ARITHMETIC:
            return partial(self._in_place, bare[1:])
        if name == "__call__":
            return self._call
        return partial(self._method, name) if name in OTHERS else None

    def _proxy_class(self, name: str) -> TypeInfo | None:
        symbol = self.lookup_fully_qualified(name)
        info = symbol and symbol.node
        return info if isinstance(info, TypeInfo) and info.has_base(PROXY) else None

    # -- attributes

    def _attribute(self, name: str, context: AttributeContext) -> Type:
        # A __getattr__ of a subclass that says what it returns is believed.
        if not isinstance(get_proper_type(context.default_attr_type), AnyType):
            return context.default_attr_type
        return self._member(name, context)

    def _assigned(self, context: AttributeContext) -> Type:
        """Return a `__setattr__` that takes what the attribute of the target takes."""
        default = get_proper_type(context.default_attr_type)
        target = context.context
        if not isinstance(target, MemberExpr) or not isinstance(default, CallableType):
            return default
        if target.name == "__setattr__":  # is called by name
            return default
        value = self._member(target.name, context, assigned=True)
        return default.copy_modified(arg_types=[*default.arg_types[:-1], value])

    def _member(self, name: str, context: AttributeContext, *, assigned: bool = False) -> Type:
        """Return the type of an attribute of the target, to read or to assign to."""
        target = self._target(context.type, without=name)
        if target is None:
            return _anything()
        checker: Any = context.api
        self._depth += 1
        try:
            return analyze_member_access(
                name,
                target,
                context.context,
                is_lvalue=assigned,
                is_super=False,
                is_operator=False,
                # The type that is shown in errors; a union has an error code of its own.
                original_type=context.type if isinstance(context.type, UnionType) else target,
                chk=checker,
                **({"msg": checker.msg} if _IS_1_15 else {}),
            )
        finally:
            self._depth -= 1

    def _class_of_target(self, context: AttributeContext) -> Type:
        target = self._target(context.type)
        return context.default_attr_type if target is None else TypeType.make_normalized(target)

    # -- operators

    def _operator(self, name: str, context: MethodContext) -> Type:
        operand = _operand(context)
        if operand is None:
            return context.default_return_type

        def check(checker: TypeChecker, target: ProperType) -> Type:
            with checker.msg.filter_errors(filter_errors=_IS_1_15) as errors:
                result, _ = checker.expr_checker.check_op(
                    name, target, operand, context.context, allow_reverse=True
                )
            # 1.15 says __add__ of a reflected operator too.
            return context.default_return_type if _IS_1_15 and errors.has_new_errors() else result

        return self._apply(context, check)

    def _reflected(self, name: str, context: MethodContext) -> Type:
        operand = _operand(context)
        if operand is None:
            return context.default_return_type
        return self._apply(
            context,
            lambda checker, target: checker.expr_checker.check_op(
                name,
                context.arg_types[0][0],
                TempNode(target, context=context.context),
                context.context,
                allow_reverse=True,
            )[0],
        )

    def _in_place(self, bare: str, context: MethodContext) -> Type:
        """Check `proxy += operand` as for the target; the result is the proxy."""
        operand = _operand(context)
        if operand is None:
            return context.default_return_type

        def check(checker: TypeChecker, target: ProperType) -> Type:
            in_place = isinstance(target, Instance) and bool(target.type.get(f"__i{bare}__"))
            result, _ = checker.expr_checker.check_op(
                f"__i{bare}__" if in_place else f"__{bare}__",
                target,
                operand,
                context.context,
                allow_reverse=not in_place,
            )
            if not is_subtype(result, target):
                checker.fail(
                    "Result type of the in-place operator is not the type of the proxy's target",
                    context.context,
                    code=OPERATOR,
                )
            return context.type

        return self._apply(context, check)

    def _call(self, context: MethodContext) -> Type:
        arguments: list[Expression] = [x for formal in context.args for x in formal]
        kinds: list[ArgKind] = [x for formal in context.arg_kinds for x in formal]
        names: list[str | None] = [x for formal in context.arg_names for x in formal]
        return self._apply(
            context,
            lambda checker, target: checker.expr_checker.check_call(
                target, arguments, kinds, context.context, names
            )[0],
        )

    def _method(self, name: str, context: MethodContext) -> Type:
        arguments: list[Expression] = [x for formal in context.args for x in formal]
        kinds: list[ArgKind] = [x for formal in context.arg_kinds for x in formal]

        def check(checker: TypeChecker, target: ProperType) -> Type:
            where = context.context
            if name == "__getitem__" and isinstance(where, IndexExpr):
                # Knows of tuples and typed dictionaries, whose items differ in type.
                return checker.expr_checker.visit_index_with_type(target, where)
            if isinstance(target, TypedDictType):  # is not written to by methods
                return context.default_return_type
            return checker.expr_checker.check_method_call_by_name(
                name, target, arguments, kinds, where
            )[0]

        return self._apply(context, check)

    def _apply(
        self, context: MethodContext, check: Callable[[TypeChecker, ProperType], Type]
    ) -> Type:
        target = self._target(context.type)
        if target is None or not isinstance(context.api, TypeChecker):
            return context.default_return_type
        self._depth += 1
        try:
            return check(context.api, target)
        finally:
            self._depth -= 1

    # -- targets

    def _target(self, kind: ProperType, *, without: str | None = None) -> ProperType | None:
        """Return the type of the target of a proxy; None if there is nothing to say of it.

        Args:
            kind: Type of the proxy. Of a union all proxies are meant: mypy asks for one of them
                without saying for which.
            without: An attribute that is looked for, which some proxies of a union may have
                themselves.
        """
        if self._depth >= DEEPEST:
            return None
        if isinstance(kind, UnionType):
            found = []
            for item in map(get_proper_type, kind.items):
                info = _info(item)
                if info is None or (without is not None and info.get(without)):
                    continue
                target = self._target(item)
                if target is None:
                    return None
                found.append(target)
            return get_proper_type(UnionType.make_union(found)) if found else None
        if isinstance(kind, TypeVarType):
            return self._target(get_proper_type(kind.upper_bound))
        if _info(kind) is None or not isinstance(kind, Instance):
            return None
        base = next(info for info in kind.type.mro if info.fullname == PROXY)
        target = get_proper_type(map_instance_to_supertype(kind, base).args[0])
        return target if _is_known(target) else None


def _info(kind: ProperType) -> TypeInfo | None:
    """Return the class of a proxy; None of anything else."""
    if isinstance(kind, TypeVarType):
        kind = get_proper_type(kind.upper_bound)
    return kind.type if isinstance(kind, Instance) and kind.type.has_base(PROXY) else None


def _is_known(target: ProperType) -> bool:
    if isinstance(target, (AnyType, UninhabitedType)):
        return False
    if isinstance(target, TypeVarType):
        bound = get_proper_type(target.upper_bound)
        return not (isinstance(bound, Instance) and bound.type.fullname == "builtins.object")
    return not (
        isinstance(target, UnionType)
        and any(not _is_known(get_proper_type(item)) for item in target.items)
    )


def _operand(context: MethodContext) -> Expression | None:
    """Return the one argument of an operator; None where there is not one."""
    if [len(formal) for formal in context.args][:1] != [1] or any(context.args[1:]):
        return None
    expression = context.args[0][0]
    if isinstance(expression, LITERALS):
        return expression
    return TempNode(context.arg_types[0][0], context=context.context)


def _anything() -> AnyType:
    return AnyType(TypeOfAny.special_form)


_IS_1_15 = __version__.startswith("1.15.")


def plugin(version: str) -> type[Plugin]:
    """Return the plugin's class; called by mypy.

    Args:
        version: mypy's version; 1.15 or later.
    """
    return ProxyStoreMypyPlugin
