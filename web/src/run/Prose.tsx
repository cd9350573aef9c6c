import Markdown from 'react-markdown'
import gfm from 'remark-gfm'

/** Markdown that a user's code wrote: HTML in it is shown as text. */
export default function Prose({ text }: { text: string }) {
  return <div className="prose"><Markdown remarkPlugins={[gfm]}>{text}</Markdown></div>
}
