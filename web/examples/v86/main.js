// A machine with two disks: one that it boots from, and one that it writes to, as an overlay in the OPFS.

import { opfs, start } from '../../dist/index.js';
import { v86Disk } from '../../dist/v86.js';

// ?v86=v86-older takes another version, by its folder.
const version = new URLSearchParams(location.search).get('v86') ?? 'v86';
const v86 = new URL(`../../node_modules/${version}/build/`, import.meta.url);
const { V86 } = await import(`${v86}libv86.mjs`);
const engine = await start();

const form = document.querySelector('form');
const { bios, vgaBios, boot, disk, address, start: startButton, snapshot, stop, retry, download } = form.elements;
const screen = document.querySelector('#screen');
const overlay = 'v86/overlay.qcow2';
let machine;

function say(text) {
  document.querySelector('[role=status]').textContent = text;
}

/** Does what a button asks for, and says why it could not be done. */
function act(button, work) {
  button.disabled = true;
  work().catch((error) => {
    button.disabled = false;
    say(error.message);
  });
}

/** The overlay from the last time where there is one: it must be over the same file. */
async function openOverlay(base) {
  if (await opfs.has(overlay)) return engine.open({ opfs: overlay }, { writable: true, resolve: () => base });
  return engine.overlay({ opfs: overlay }, base);
}

async function startMachine() {
  const onError = ({ error }) => {
    // The guest waits for its disk, until there is room again, or the server answers.
    say(`${error.message} (${error.code})`);
    retry.disabled = false;
  };
  const hda = v86Disk(await engine.open(boot.files[0]), { onError });
  const hdb = v86Disk(await openOverlay(disk.files[0] ?? { url: address.value }), { onError });
  const emulator = new V86({
    wasm_path: `${v86}v86.wasm`,
    bios: { buffer: await bios.files[0].arrayBuffer() },
    vga_bios: { buffer: await vgaBios.files[0].arrayBuffer() },
    hda,
    hdb,
    screen_container: screen,
    memory_size: 32 << 20,
    disable_speaker: true,
    autostart: true,
  });
  machine = { emulator, hda, hdb };
  for (const button of [snapshot, stop]) button.disabled = false;
  screen.focus();
  say('running');
}

form.addEventListener('submit', (event) => {
  event.preventDefault();
  act(startButton, startMachine);
});

snapshot.addEventListener('click', () => {
  act(snapshot, async () => {
    const { name, id } = await machine.hdb.snapshot(new Date().toISOString());
    snapshot.disabled = false;
    screen.focus();
    say(`snapshot ${id}: ${name}`);
  });
});

retry.addEventListener('click', () => {
  retry.disabled = true;
  for (const disk of [machine.hda, machine.hdb]) disk.retry();
  screen.focus();
  say('running');
});

// Of the two ways to give the disk one is enough.
form.addEventListener('input', () => {
  disk.required = address.value === '';
});

stop.addEventListener('click', () => {
  act(stop, async () => {
    snapshot.disabled = true;
    await machine.emulator.destroy();
    await Promise.all([machine.hda.close(), machine.hdb.close()]);
    download.disabled = false;
    say('stopped: everything is stored');
  });
});

download.addEventListener('click', async () => {
  const link = Object.assign(document.createElement('a'), { download: 'overlay.qcow2' });
  link.href = URL.createObjectURL(await opfs.file(overlay));
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
});

say('ready');
