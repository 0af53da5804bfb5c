// <ox-keep>: what can be done with a dropped image to change it: an overlay over it, or a copy that is kept here.

import { html, LitElement, nothing, type TemplateResult } from 'lit';

import type { Session } from '../session.js';
import { base } from '../styles.js';
import { Task } from '../task.js';
import { counted, size } from '../words.js';
import { ask } from './dialog.js';

export class Keep extends LitElement {
  static override properties = { session: { attribute: false }, view: { attribute: false } };
  declare session: Session;
  declare view: number;

  static override styles = base;

  #task = new Task(this);
  #what = '';

  override render(): TemplateResult {
    const { session } = this;
    const whole = session.readable && !session.incomplete && !session.chain[0]?.encrypted;
    const overlay = whole && !session.dependencies.some(({ wanted }) => wanted.role === 'data-file' && wanted.depth === 0);
    return html`<div class="stack">
      <p class="small muted">
        ${whole
          ? html`A writable copy is there at once and holds only what you change; the file stays as it is, and is asked for again when you
            come back. An import needs the file no more. Both are kept in this browser, with snapshots, resizing and repair.`
          : html`An exact copy in this browser can be repaired. The file stays as it is.`}
      </p>
      ${this.#task.running
        ? this.#task.progress()
        : html`<div class="row">
            ${overlay ? html`<button class="primary" @click=${() => this.#copy()}>Make a writable copy</button>` : nothing}
            ${whole || session.report?.format === 'qcow2' ? html`<button @click=${() => this.#import(whole)}>Import…</button>` : nothing}
          </div>`}
      ${this.#task.problem(this.#what)}
    </div>`;
  }

  async #copy(): Promise<void> {
    this.#what = 'No copy was made';
    await this.#task.run('Making a writable copy', () => this.session.makeCopy());
  }

  async #import(whole: boolean): Promise<void> {
    const { session } = this;
    const [top] = session.chain;
    const snapshots = session.snapshots.length;
    const copies = session.report?.format === 'qcow2' && session.dependencies.length === 0;
    const choice = (value: string, checked: boolean, title: string, text: string) =>
      html`<label class="choice"
        ><input type="radio" name="how" value=${value} .checked=${checked} /><span>${title}</span><small>${text}</small></label
      >`;
    const answer = await ask({
      title: `Import ${session.name}`,
      safe: 'The file itself is only read. An import that is stopped, or for which there is no room, leaves nothing behind.',
      more: html`<fieldset>
        <legend class="hide">How</legend>
        ${whole
          ? choice(
              'convert',
              !(copies && snapshots > 0),
              'The disk as it is now',
              `A new qcow2 image of ${size(top?.virtualSize ?? 0)} that takes only the room of what is stored${snapshots ? `; the ${counted(snapshots, 'snapshot')} stay behind` : ''}.`,
            )
          : nothing}
        ${copies
          ? choice('copy', !whole || snapshots > 0, 'An exact copy', `All ${size(session.fileSize)} of the file${snapshots ? `, with ${counted(snapshots, 'snapshot')}` : ''}, byte by byte.`)
          : nothing}
      </fieldset>`,
      action: 'Import',
    });
    if (!answer) return;
    const how = answer.get('how') === 'copy' ? 'copy' : 'convert';
    this.#what = 'Not imported';
    await this.#task.run('Importing', (watch) => session.importImage(how, watch));
  }
}

customElements.define('ox-keep', Keep);
