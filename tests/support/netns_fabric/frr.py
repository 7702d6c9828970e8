"""FRR's daemons in a box, with configuration and sockets that are the box's own."""

from __future__ import annotations

import asyncio
import re

from netns_fabric.namespace import Box, output_of

# Where Debian's package has the daemons.
DAEMONS = "/usr/lib/frr"


# As supervisord does in SONiC's container of FRR: when one daemon ends, all start anew with the configuration for boot.
_SUPERVISE = """
while true; do
    if [ -s {saved} ]; then cat {saved} > /etc/frr/frr.conf; fi
    {daemons}/zebra {options} -A 127.0.0.1 & zebra=$!
    {daemons}/bgpd -A 127.0.0.1 & bgpd=$!
    until vtysh -c 'show daemons' 2> /dev/null | grep -q bgpd; do sleep 0.1; done
    vtysh -b > /dev/null
    touch /var/tmp/frr/loaded
    wait -n
    kill $zebra $bgpd 2> /dev/null
    wait
done
"""


async def start(box: Box, configuration: str, *, saved: str = "/dev/null", vrfs: bool = False) -> None:
    """Start zebra and bgpd with `configuration`, and again whenever one of them ends: then with the file `saved`, once
    there is one. With `vrfs` named namespaces of the box are VRFs."""
    end = "END-OF-TEXT"
    supervise = _SUPERVISE.format(saved=saved, daemons=DAEMONS, options="-n" if vrfs else "")
    await box.run(
        f"cat > /etc/frr/frr.conf <<'{end}'\n{configuration}\n{end}\n"
        f"cat > /etc/frr/supervise <<'{end}'\n{supervise}\n{end}\n"
        "touch /etc/frr/vtysh.conf; chown -R frr:frr /etc/frr /var/run/frr /var/tmp/frr; "
        "bash /etc/frr/supervise > /dev/null 2>&1 & "
        "until [ -e /var/tmp/frr/loaded ]; do sleep 0.05; done"
    )


async def load(box: Box, commands: str) -> None:
    """Have a running FRR carry out commands."""
    end = "END-OF-COMMANDS"
    await box.run(f"cat > /etc/frr/more.conf <<'{end}'\n{commands}\n{end}\nvtysh -f /etc/frr/more.conf")


async def until_vrf(box: Box, vrf: str) -> None:
    """Wait until zebra has taken a namespace of the box for a VRF. Raises TimeoutError when it does not in 20 s."""
    async with asyncio.timeout(20):
        while f"vrf {vrf} id " not in await output_of(vtysh(box, "-c", "show vrf"), "show vrf"):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def vnis_heard(box: Box) -> set[int]:
    """The VNIs of the EVPN routes that a box has, by the route targets that FRR derives from them."""
    said = await output_of(vtysh(box, "-c", "show bgp l2vpn evpn"), "show bgp l2vpn evpn")
    return {int(vni) for vni in re.findall(r"\bRT:\d+:(\d+)", said)}


async def seen_by(box: Box) -> str:
    """Sessions, routes and VNIs as the box's FRR and its kernel have them, for a test that failed."""
    if not box.alive:
        return "without power"
    commands = (
        "show bgp vrf all summary",
        "show bgp l2vpn evpn route type prefix",
        "show evpn vni",
        "show interface vrf all brief",
        "show ip route vrf all",
        "show ipv6 route vrf all",
    )
    said = await output_of(vtysh(box, *(word for command in commands for word in ("-c", command))), "vtysh")
    said += await box.run("cat /var/tmp/frr/*/crashlog 2> /dev/null || true")
    inside = "ip netns exec $vrf sh -c 'ip route; ip -6 route; ip neigh; bridge fdb'"
    return said + await box.run(
        f"ip route; ip -6 route; for vrf in $(ls /run/netns); do echo; echo $vrf; {inside}; done"
    )


def vtysh(box: Box, *arguments: str) -> tuple[str, ...]:
    """The command line of the box's vtysh, from outside of the box."""
    return box.enter("vtysh", *arguments, kinds=("mount",))
