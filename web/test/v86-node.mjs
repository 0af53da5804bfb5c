// v86 in Node with images as disks: GRUB boots, reads and writes; QEMU's tools and mtools say what is there. A machine
// takes a processor for itself, so each version is tested in a process of its own.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { after, before, describe, test } from 'node:test';

import { fileSource, fileStorage, start } from 'oxcow';
import { v86Disk } from 'oxcow/v86';
import { Images } from './qemu.mjs';
import { Console, FIRMWARE, hashOf, HELLO, makeDisks, savedIn, withoutMachine } from './v86-machine.mjs';

const { resolve } = createRequire(import.meta.url);

async function startMachine(t, version, disks) {
  const { V86 } = await import(version);
  const file = (path) => ({ buffer: new Uint8Array(readFileSync(path)).buffer });
  const emulator = new V86({
    wasm_path: resolve(version).replace(/[^/\\]*$/, 'v86.wasm'),
    bios: file(FIRMWARE.bios),
    vga_bios: file(FIRMWARE.vgaBios),
    memory_size: 32 << 20,
    disable_speaker: true,
    autostart: true,
    ...disks,
  });
  t.after(() => emulator.destroy()); // It would run on.
  const screen = () => (emulator.screen_adapter?.get_text_screen() ?? []).join('\n').trimEnd();
  return { emulator, console: new Console(screen, (key) => emulator.keyboard_send_text(key)) };
}

/** The tests of one version, by the name of its package. */
export function testInNode(version) {
  describe(`GRUB in ${version}`, { skip: withoutMachine }, () => {
    let images;
    let engine;

    before(async () => {
      images = new Images();
      makeDisks(images);
      engine = await start();
    });

    after(async () => {
      await engine?.close();
      images?.remove();
    });

    test('boots from an image, reads and writes in an overlay, with a snapshot taken while it runs', async (t) => {
      const base = hashOf(images.path('base.qcow2'));
      const name = `${version}.qcow2`;
      const overlay = await engine.overlay(
        fileStorage(images.path(name), { create: true }),
        fileSource(images.path('base.qcow2')),
        { backingName: 'base.qcow2', backingFormat: 'qcow2' },
      );
      const troubles = [];
      const onError = (trouble) => troubles.push(trouble);
      const disk = v86Disk(overlay, { onError });
      const boot = v86Disk(await engine.open(fileSource(images.path('boot.qcow2'))), { onError });
      const { emulator, console } = await startMachine(t, version, { hda: boot, hdb: disk });
      await console.boot();
      assert.match(await console.command('root=hd1,msdos1;cat /hello.txt'), new RegExp(HELLO));
      await console.save('a', 'one');
      // What the machine is in and the disk, together, and the guest goes on at once.
      const [state, snapshot] = await Promise.all([emulator.save_state(), disk.snapshot('running')]);
      await console.save('b', 'two');
      await disk.flush();
      assert.deepEqual(savedIn(images, name), { a: 'one', b: 'two' });
      assert.deepEqual(savedIn(images, name, 'running'), { a: 'one' });

      await emulator.stop();
      await disk.snapshot('later');
      await assert.rejects(async () => emulator.restore_state(state), { name: 'OxcowError', code: 'refused' });
      await emulator.destroy();
      await disk.close();

      // Another session: the disk as it was, and the machine goes on from where it was.
      const image = await engine.open(fileStorage(images.path(name)), {
        writable: true,
        resolve: () => fileSource(images.path('base.qcow2')),
      });
      await image.applySnapshot(snapshot.id);
      const again = v86Disk(image, { onError, moment: snapshot.moment });
      const other = await startMachine(t, version, {
        hda: v86Disk(boot.image, { onError }),
        hdb: again,
        initial_state: { buffer: state },
      });
      await other.console.see(/grub> *$/);
      await other.console.save('c', 'three');
      await other.emulator.destroy();
      await again.close();
      await boot.close();

      assert.deepEqual(troubles, []);
      const { 'check-errors': errors, corruptions, leaks } = images.json('check', name);
      assert.deepEqual({ errors, corruptions, leaks }, { errors: 0, corruptions: undefined, leaks: undefined });
      assert.deepEqual(savedIn(images, name), { a: 'one', c: 'three' });
      assert.deepEqual(savedIn(images, name, 'later'), { a: 'one', b: 'two' });
      assert.equal(hashOf(images.path('base.qcow2')), base);
    });
  });
}
