// <ox-resize>: gives the disk another size.

import { css, html, LitElement, type TemplateResult } from 'lit';

import type { Session } from '../session.js';
import { base } from '../styles.js';
import { Task } from '../task.js';
import { exact, parseSize, size } from '../words.js';
import { ask } from './dialog.js';

export class Resize extends LitElement {
  static override properties = { session: { attribute: false }, view: { attribute: false }, _wrong: { state: true } };
  declare session: Session;
  declare view: number;
  declare _wrong: string;

  static override styles = [
    base,
    css`
      input {
        width: 9rem;
        font-family: var(--mono);
      }
    `,
  ];

  #task = new Task(this);

  constructor() {
    super();
    this._wrong = '';
  }

  override render(): TemplateResult {
    const now = this.session.base?.virtualSize ?? 0;
    return html`<div class="stack">
      <p class="small muted number">The disk has ${size(now)} (${exact(now)}). What is inside of it has to be told by the machine that uses it.</p>
      <form class="fields" @submit=${this.#submit} novalidate>
        <label
          >New size
          <input type="text" name="size" placeholder="20 GiB" spellcheck="false" autocomplete="off" aria-describedby="wrong" aria-invalid=${this._wrong ? 'true' : 'false'} />
        </label>
        <button type="submit" ?disabled=${this.#task.running}>Resize…</button>
      </form>
      <p class="wrong" id="wrong" role="alert" ?hidden=${!this._wrong}>${this._wrong}</p>
      ${this.#task.problem('Not resized')}
    </div>`;
  }

  async #submit(event: SubmitEvent): Promise<void> {
    event.preventDefault();
    const { session } = this;
    const input = this.renderRoot.querySelector('input');
    const asked = input?.value ?? '';
    const wanted = parseSize(asked);
    const now = BigInt(session.base?.virtualSize ?? 0);
    const shrink = wanted !== undefined && wanted < now;
    this._wrong =
      wanted === undefined || wanted === 0n
        ? 'That is no size. Write it like 20 GiB or 512M.'
        : wanted % 512n !== 0n
          ? 'A disk consists of whole sectors of 512 bytes.'
          : wanted === now
            ? 'The disk has that size already.'
            : shrink && session.snapshots.length > 0
              ? 'A disk with snapshots can only grow: they need its end. Delete them first.'
              : '';
    if (wanted === undefined || this._wrong) return;
    const answer = await ask({
      title: `${shrink ? 'Shrink' : 'Grow'} the disk to ${size(wanted)}?`,
      ...(shrink && { lost: `The last ${size(now - wanted)} of the disk, with everything that is there. Shrink the file systems inside before, or they break.` }),
      safe: shrink ? `The first ${size(wanted)} of the disk.` : 'Everything on the disk. What is added reads as zeros and takes no room.',
      action: shrink ? 'Shrink' : 'Grow',
    });
    if (!answer) return;
    await this.#task.run('Resizing', () => session.change((image) => image.resize(wanted, { shrink })));
    // Unless the next size stands there by now.
    if (input && input.value === asked && !this.#task.error) input.value = '';
  }
}

customElements.define('ox-resize', Resize);
